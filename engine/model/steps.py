"""Update rules of the Nested Learning paper for one weight tensor (HOPE.md §1(c), (d)): deep optimizers as functions.

A rule is a frozen set of constants; its state is plain tensors, passed in and returned, so that rows of a batch can
each carry their own. Every function takes any leading dimensions and treats their entries independently.
Knows no parameters, no autograd and no schedules; the rules that orthogonalise are in `orthogonal_steps.py`.

Shapes: "..." leading dimensions, F rows (outputs), D columns (inputs), N tokens, H hidden units of a deep momentum.
A rate is a number, or a tensor [...] with one rate per leading entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
Rate = float | Tensor

OBJECTIVES = ("aligned", "printed", "regression")
SMALLEST_NORM = 1e-7


class Rule(Protocol):
    """How a gradient becomes a change: W <- W + change."""

    def initial(self, weight_FD: Tensor) -> State:
        """The state before the first step, of the weight's leading shape, device and dtype."""

    def step(self, state: Mapping[str, Tensor], gradient_FD: Tensor, rate: Rate) -> tuple[State, Tensor]:
        """The state after a step at this gradient, and the change [...,F,D] it makes; nothing is done in place."""


@dataclass(frozen=True)
class PlainDescent:
    """W <- W - rate g (eq. 8): the rule without a state."""

    def initial(self, weight_FD: Tensor) -> State:
        """Nothing."""
        return {}

    def step(self, state: Mapping[str, Tensor], gradient_FD: Tensor, rate: Rate) -> tuple[State, Tensor]:
        """As `Rule`."""
        return dict(state), -per_entry(rate) * gradient_FD


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction; its decoupled weight decay is the caller's. `step` counts per leading entry."""

    first_decay: float = 0.9
    second_decay: float = 0.999
    epsilon: float = 1e-8

    def initial(self, weight_FD: Tensor) -> State:
        """Zero moments, zero steps."""
        zero = torch.zeros_like(weight_FD)
        return {"step": step_count(weight_FD), "first": zero, "second": zero.clone()}

    def step(self, state: Mapping[str, Tensor], gradient_FD: Tensor, rate: Rate) -> tuple[State, Tensor]:
        """As `Rule`."""
        step = state["step"] + 1
        first = torch.lerp(state["first"], gradient_FD, 1 - self.first_decay)
        second = self.second_decay * state["second"] + (1 - self.second_decay) * gradient_FD.square()
        root = (second / unbiased(self.second_decay, step, second)).sqrt() + self.epsilon
        change = -per_entry(rate) * (first / unbiased(self.first_decay, step, first)) / root
        return {"step": step, "first": first, "second": second}, change


@dataclass(frozen=True)
class DeltaMomentum:
    """m <- m (a - k^T k) - rate P g and W <- W + m (eq. 33, 48, 49): momentum that overwrites what it knew of g.

    The paper writes g^T g, a scalar for a gradient that is a column. Here g is a matrix [F,D] and g^T g its Gram
    product [D,D]: for one token, g = u x^T, that is |u|^2 x x^T, the delta rule's projector on the input. A vector
    is to be given as one row [1,D]. As printed the rule diverges where the greatest singular value of g exceeds
    sqrt(1 + a): so k is g drawn into the ball of Frobenius norm sqrt(a), which puts every eigenvalue of a - k^T k
    in [0, a]. The descent term takes g as it is.

    Attributes:
        retention: a, above 0 and at most 1.
        unit: k is g scaled to norm sqrt(a), also where g is smaller: the projector then keeps its strength when
            gradients are small. False is the printed rule wherever |g| <= sqrt(a).
        precondition: P is the diagonal 1 / (sqrt(V) + 1e-8), V the bias-corrected mean square of g; False: P = 1.
        second_decay: decay of V.
    """

    retention: float = 0.9
    unit: bool = False
    precondition: bool = False
    second_decay: float = 0.999

    def initial(self, weight_FD: Tensor) -> State:
        """Zero momentum; with `precondition`, zero second moment and zero steps."""
        state = {"momentum": torch.zeros_like(weight_FD)}
        if self.precondition:
            state |= {"step": step_count(weight_FD), "second": torch.zeros_like(weight_FD)}
        return state

    def step(self, state: Mapping[str, Tensor], gradient_FD: Tensor, rate: Rate) -> tuple[State, Tensor]:
        """As `Rule`."""
        after, descent = dict(state), gradient_FD
        if self.precondition:
            after["step"] = state["step"] + 1
            square = gradient_FD.square()
            after["second"] = second = self.second_decay * state["second"] + (1 - self.second_decay) * square
            descent = gradient_FD / ((second / unbiased(self.second_decay, after["step"], second)).sqrt() + 1e-8)
        radius = self.retention**0.5
        key = gradient_FD * (radius / frobenius(gradient_FD).clamp_min(SMALLEST_NORM if self.unit else radius))
        momentum = state["momentum"]
        wide = key.shape[-2] <= key.shape[-1]
        recalled = (momentum @ key.mT) @ key if wide else momentum @ (key.mT @ key)
        after["momentum"] = self.retention * momentum - recalled - per_entry(rate) * descent
        return after, after["momentum"]


@dataclass(frozen=True)
class DeepMomentum:
    """W <- W + rate m(u), m <- a m - memory_rate grad L2(m; u, 1) (eq. 50): momentum as a small MLP.

    m(u) = b + B s(A u) acts on each row of u, the gradient over its root mean square, so that the memory sees one
    scale. b [F,D] is one bias per row, so that with B = 0 this is the momentum of eq. 33; A and B serve all rows, and
    their L2 is the mean over rows. s = tanh / sqrt(H), odd: with SiLU every row is given the mean of all rows'
    gradients. The paper leaves open m's shape, the scale of its output (here the learning rate; 1 is eq. 50) and
    above all what L2 says of direction: <m(u), 1> as printed asks every coordinate to fall whatever the gradient is,
    which descends nothing. Hence `objective`:

    - `aligned`: <m(u), u>, the first-order change of the loss under W <- W + m(u).
    - `printed`: <m(u), 1>.
    - `regression`: 1/2 |m(u) + u|^2: m learns to answer a gradient with its negative.

    The first two have no minimum, and A and B feed each other's growth: both are held within `max_norm`. As printed,
    `a` draws A to zero, where B can learn nothing either; here it is drawn to its seeded initial state.

    Attributes:
        num_hidden: H.
        retention: a, in [0, 1].
        memory_rate: step of the memory's own descent, eta of eq. 50.
        max_norm: bound on the Frobenius norms of B and of A's difference from its initial state.
    """

    num_hidden: int = 32
    retention: float = 0.9
    memory_rate: float = 0.1
    objective: str = "aligned"
    max_norm: float = 8.0

    def initial(self, weight_FD: Tensor) -> State:
        """A seeded, the same for every leading entry; B and b zero, so that m(u) = 0."""
        lead, width = weight_FD.shape[:-2], weight_FD.shape[-1]
        up = self._seeded(weight_FD).expand(*lead, -1, -1).clone()
        down = weight_FD.new_zeros(*lead, width, self.num_hidden)
        return {"up": up, "down": down, "bias": torch.zeros_like(weight_FD)}

    def step(self, state: Mapping[str, Tensor], gradient_FD: Tensor, rate: Rate) -> tuple[State, Tensor]:
        """As `Rule`."""
        num_rows, width = gradient_FD.shape[-2:]
        u_FD = gradient_FD * (math.sqrt(num_rows * width) / frobenius(gradient_FD).clamp_min(SMALLEST_NORM))
        up_HD, down_DH = state["up"], state["down"]
        hidden_FH, answer_FD = self._read(state, u_FD)
        errors = {"aligned": u_FD, "printed": torch.ones_like(u_FD), "regression": answer_FD + u_FD}
        error_FD = errors[self.objective]
        slope_FH = (1 - self.num_hidden * hidden_FH.square()) / math.sqrt(self.num_hidden)
        down_gradient = error_FD.mT @ hidden_FH / num_rows
        up_gradient = ((error_FD @ down_DH) * slope_FH).mT @ u_FD / num_rows
        centre_HD = self._seeded(gradient_FD)
        moved_HD = self.retention * (up_HD - centre_HD) - self.memory_rate * up_gradient
        after = {
            "up": centre_HD + _bounded(moved_HD, self.max_norm),
            "down": _bounded(self.retention * down_DH - self.memory_rate * down_gradient, self.max_norm),
            "bias": self.retention * state["bias"] - self.memory_rate * error_FD,
        }
        return after, per_entry(rate) * self._read(after, u_FD)[1]

    def _read(self, state: Mapping[str, Tensor], u_FD: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden code [...,F,H] and m(u) [...,F,D]."""
        hidden_FH = torch.tanh(u_FD @ state["up"].mT) / math.sqrt(self.num_hidden)
        return hidden_FH, state["bias"] + hidden_FH @ state["down"].mT

    def _seeded(self, like_FD: Tensor) -> Tensor:
        width, generator = like_FD.shape[-1], torch.Generator().manual_seed(0)
        drawn = torch.randn(self.num_hidden, width, generator=generator, dtype=torch.float64)
        return (drawn / math.sqrt(width)).to(like_FD)


def delta_gradient_descent_token(weight_FD: Tensor, x_D: Tensor, gradient_F: Tensor, rate: Rate) -> Tensor:
    """W (I - r x x^T) - r grad_y x^T for one input (eq. 57), r = rate / (1 + rate |x|^2): exact for any norm of x.

    `gradient` is that of the loss by y = W x; returns the weight after the step [...,F,D].
    """
    step: Tensor = per_entry(rate) / (1 + x_D.square().sum(-1)[..., None, None] * per_entry(rate))
    surprise = (weight_FD @ x_D[..., None]).squeeze(-1) + gradient_F
    return weight_FD - step * (surprise[..., :, None] * x_D[..., None, :])


def delta_gradient_descent(
    weight_FD: Tensor, x_ND: Tensor, gradient_FD: Tensor, rate: Rate, pull: Rate = 1.0
) -> Tensor:
    """argmin over W of pull/2 sum_n |W x_n|^2 + <W, G> + 1/(2 rate) |W - W_t|^2: eq. 56 for many inputs at once.

    G = sum_n grad_{y_n} x_n^T is the weight's ordinary gradient. With pull 1 this is sum_n 1/2 |W x_n - u_n|^2, up to a
    constant, u_n = -grad_{y_n}: (W_t / rate + U^T X)(I / rate + X^T X)^-1. For a loss that is a mean over N tokens,
    pull 1/N is the mean of eq. 56. Pull towards 0 is gradient descent (eq. 8); in between lies the generic form
    W (I - a x x^T) - b grad_y x^T of the paper's appendix C. Tokens with x = 0 change nothing.

    Solved in the smaller of N and D (Woodbury). Where that fails (inputs that are not finite) the entry is NaN, and
    it alone. `pull` is a number or one per leading entry, as `rate` is.

    Returns:
        The weight after the step [...,F,D].
    """
    rate, strength = per_entry(rate), per_entry(rate) * per_entry(pull)
    wanted_FD = rate * gradient_FD + strength * ((weight_FD @ x_ND.mT) @ x_ND)
    if x_ND.shape[-2] < x_ND.shape[-1]:
        # (I + s X^T X)^-1 = I - s X^T (I + s X X^T)^-1 X
        across_NN = strength * (x_ND @ x_ND.mT)
        change_FD = wanted_FD - strength * (_solve(across_NN, x_ND @ wanted_FD.mT).mT @ x_ND)
    else:
        change_FD = _solve(strength * (x_ND.mT @ x_ND), wanted_FD.mT).mT
    return weight_FD - change_FD


def per_entry(value: Rate) -> Rate:
    """A number as it is; one value per leading entry [...] as [...,1,1]."""
    return value[..., None, None] if isinstance(value, Tensor) else value


def step_count(weight_FD: Tensor) -> Tensor:
    """Zero steps for every leading entry [...]; whole numbers, which no storage precision rounds."""
    return weight_FD.new_zeros(weight_FD.shape[:-2], dtype=torch.int64)


def unbiased(decay: float, step: Tensor, like: Tensor) -> Tensor:
    """1 - decay^step as [...,1,1]: what a mean that began at zero is to be divided by."""
    return (1 - decay ** step.to(like.dtype))[..., None, None]


def frobenius(matrix_FD: Tensor) -> Tensor:
    """Frobenius norm of every leading entry, as [...,1,1]."""
    return matrix_FD.square().sum((-2, -1), keepdim=True).sqrt()


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """(I + gram)^-1 right; NaN where that is not positive definite."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, status = torch.linalg.cholesky_ex(identity + gram)
    return torch.cholesky_solve(right, factor).where((status == 0)[..., None, None], torch.nan)


def _bounded(matrix: Tensor, max_norm: float) -> Tensor:
    return matrix * (max_norm / frobenius(matrix).clamp_min(max_norm))

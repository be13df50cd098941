"""The rules of `steps` whose change is an orthogonalised momentum: Muon and M3 (HOPE.md eq. 42 to 44, 52, 75, Alg. 1).

Newton-Schulz brings the singular values of a momentum towards 1; a step then moves every direction alike.
Knows no parameters, no autograd and no schedules.

Shapes: as in `steps`: "..." leading dimensions, F rows (outputs), D columns (inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.steps import SMALLEST_NORM, Rate, State, frobenius, per_entry, step_count, unbiased

# x <- a x + b x^3 + c x^5 on every singular value. The quintic is Muon's; the cubic is one step of descent on
# |O^T O - I|^2 with rate 1/8 (eq. 43, 44).
POLYNOMIALS = {"quintic": (3.4445, -4.7750, 2.0315), "cubic": (1.5, -0.5, 0.0)}


def newton_schulz(matrix_FD: Tensor, num_iterations: int = 5, polynomial: str = "quintic") -> Tensor:
    """The matrix with its singular values brought near 1, in its own precision; a zero matrix stays zero.

    `quintic` gets even small ones to about 0.7 to 1.2 within five iterations and no closer; `cubic` converges to 1, but
    needs some log(norm / value) / log(1.5) iterations for a small one to begin with.
    """
    a, b, c = POLYNOMIALS[polynomial]
    tall = matrix_FD.shape[-2] > matrix_FD.shape[-1]
    out = matrix_FD.mT if tall else matrix_FD
    out = out / frobenius(out).clamp_min(SMALLEST_NORM)
    for _ in range(num_iterations):
        gram = out @ out.mT
        out = a * out + (b * gram + c * (gram @ gram)) @ out if c else a * out + b * (gram @ out)
    return out.mT if tall else out


@dataclass(frozen=True)
class Muon:
    """W <- W - rate s NS(m) (eq. 42; eq. 52 with a linear m), s = sqrt(max(1, F/D)).

    Attributes:
        retention: decay of m, the running mean of gradients.
        nesterov: NS sees that mean with this gradient counted once more.
        num_iterations, polynomial: of `newton_schulz`.
    """

    retention: float = 0.95
    nesterov: bool = True
    num_iterations: int = 5
    polynomial: str = "quintic"

    def initial(self, weight_FD: Tensor) -> State:
        """Zero momentum."""
        return {"momentum": torch.zeros_like(weight_FD)}

    def step(self, state: Mapping[str, Tensor], gradient_FD: Tensor, rate: Rate) -> tuple[State, Tensor]:
        """As `steps.Rule`."""
        momentum = torch.lerp(state["momentum"], gradient_FD, 1 - self.retention)
        ahead = torch.lerp(gradient_FD, momentum, self.retention) if self.nesterov else momentum
        scale = max(1.0, gradient_FD.shape[-2] / gradient_FD.shape[-1]) ** 0.5
        change = -per_entry(rate) * scale * newton_schulz(ahead, self.num_iterations, self.polynomial)
        return {"momentum": momentum}, change


@dataclass(frozen=True)
class M3:
    """W <- W - rate (NS(M1) + a NS(M2)) / (sqrt(V) + e): Muon with a second moment and a slow momentum (Alg. 1).

    M2 takes in the sum of `frequency` gradients at once. The printed algorithm and the prose (eq. 75) disagree:

    - M2's sign and index: Alg. 1 adds beta3 times the sum, eq. 75 subtracts beta2 times it. Alg. 1 is followed: with
      the minus, the slow term would climb.
    - accumulation: M1, M2 and V are printed as sums without decay, though all betas are below 1. Here they are running
      means, M2 of the chunks' mean gradients; V is bias-corrected (NS does not see a scale, so that M1 and M2 need no
      correction). `accumulate` is the literal text, its quotient included.
    - lateness: NS(M2) is computed from the chunks before the present one and is 0 in the first; so in both forms.

    Dividing by sqrt(V) after NS undoes its orthogonality, and makes the change grow as gradients shrink: `target_rms`
    gives it a fixed root mean square instead, as AdaMuon does.

    Attributes:
        first_decay, second_decay, slow_decay: beta1 of M1, beta2 of V, beta3 of M2.
        slow_weight: a.
        frequency: gradients per step of M2, f.
        target_rms: root mean square of the change at rate 1; None, or `accumulate`, leaves the quotient as printed.
        num_iterations, polynomial: of `newton_schulz`.
    """

    first_decay: float = 0.9
    second_decay: float = 0.999
    slow_decay: float = 0.9
    slow_weight: float = 0.5
    frequency: int = 10
    epsilon: float = 1e-8
    target_rms: float | None = 0.2
    accumulate: bool = False
    num_iterations: int = 5
    polynomial: str = "quintic"

    def initial(self, weight_FD: Tensor) -> State:
        """Everything zero; `step` counts per leading entry, `chunk` sums gradients since M2's last step."""
        names = ("first", "second", "slow", "slow_direction", "chunk")
        return {"step": step_count(weight_FD)} | {name: torch.zeros_like(weight_FD) for name in names}

    def step(self, state: Mapping[str, Tensor], gradient_FD: Tensor, rate: Rate) -> tuple[State, Tensor]:
        """As `steps.Rule`."""
        step = state["step"] + 1
        first = self._gather(state["first"], gradient_FD, self.first_decay)
        second = self._gather(state["second"], gradient_FD.square(), self.second_decay)
        mean_square = second if self.accumulate else second / unbiased(self.second_decay, step, second)
        direction = self._orthogonal(first) + self.slow_weight * state["slow_direction"]
        change = direction / (mean_square.sqrt() + self.epsilon)
        if self.target_rms is not None and not self.accumulate:
            size = (change.shape[-1] * change.shape[-2]) ** 0.5
            change = change * (self.target_rms * size / frobenius(change).clamp_min(SMALLEST_NORM))
        after = {"step": step, "first": first, "second": second, "slow": state["slow"]}
        after |= {"slow_direction": state["slow_direction"], "chunk": state["chunk"] + gradient_FD}
        return self._end_of_chunk(after), -per_entry(rate) * change

    def _end_of_chunk(self, state: State) -> State:
        """M2's step, for the entries whose chunk is full."""
        due = (state["step"] % self.frequency == 0)[..., None, None]
        if not bool(due.any()):
            return state
        chunk = state["chunk"] if self.accumulate else state["chunk"] / self.frequency
        slow = torch.where(due, self._gather(state["slow"], chunk, self.slow_decay), state["slow"])
        direction = torch.where(due, self._orthogonal(slow), state["slow_direction"])
        return {**state, "slow": slow, "slow_direction": direction, "chunk": state["chunk"].masked_fill(due, 0.0)}

    def _gather(self, total: Tensor, new: Tensor, decay: float) -> Tensor:
        return total + decay * new if self.accumulate else decay * total + (1 - decay) * new

    def _orthogonal(self, momentum_FD: Tensor) -> Tensor:
        return newton_schulz(momentum_FD, self.num_iterations, self.polynomial)

"""The update of two-layer residual memories over one chunk, in closed form: no loop over tokens, heads or sessions.

M(x) = x + W1 s(W2 x), s = SiLU (HOPE.md eq. 89/91). Writes are Delta Gradient Descent with a retention gate
(eq. 88/96), or plain gradient descent; gradients are taken at the state of the chunk's start (eq. 90), solved as
in HOPE.md §4.1. Knows tensors only: no sessions, no tokens, no parameters of its own.

Shapes: B rows, H heads, M memories stacked, C slots of the chunk, N queries, K key width, F hidden, O output width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Rule:
    """How a memory is written.

    Attributes:
        write: `dgd`, Delta Gradient Descent (eq. 57) of the first layer, whose input is the key (HOPE.md §3, 1);
            `dgd-layers`, of both layers, each with its own input; or `gradient`, without the projector I - eta k k^T.
        objective: `l2`, ||M(k) - v||^2 / 2 (eq. 93), or `dot`, -<M(k), v> (eq. 92 with its sign mended: HOPE.md
            §3, 14). Under `dgd`, `l2` settles halfway to the target and `dot` on it.
        largest_step: bound of eta. 1 lets a write take out what lay at its key; 2 lets it turn that around.
    """

    write: str = "dgd"
    objective: str = "l2"
    largest_step: float = 1.0


DEFAULT_RULE = Rule()


@dataclass(frozen=True)
class Weights:
    """Fast weights of M stacked memories: `fixed` does not decay, `decaying` does; the memory is their sum.

    With decay towards the initial state, `fixed` is the meta-learned state and `decaying` the session's
    difference from it; with decay towards zero `fixed` is None and `decaying` is everything (eq. 88 as printed).
    """

    decaying_w2_BHMFK: Tensor
    decaying_w1_BHMOF: Tensor
    fixed_w2_HMFK: Tensor | None
    fixed_w1_HMOF: Tensor | None

    def total(self) -> tuple[Tensor, Tensor]:
        """(W2, W1) of the memory as a whole."""
        if self.fixed_w2_HMFK is None or self.fixed_w1_HMOF is None:
            return self.decaying_w2_BHMFK, self.decaying_w1_BHMOF
        return self.fixed_w2_HMFK + self.decaying_w2_BHMFK, self.fixed_w1_HMOF + self.decaying_w1_BHMOF

    def given(self) -> Weights:
        """The same weights, of which no gradient reaches what the session has written."""
        return replace(
            self,
            decaying_w2_BHMFK=self.decaying_w2_BHMFK.detach(),
            decaying_w1_BHMOF=self.decaying_w1_BHMOF.detach(),
        )


@dataclass(frozen=True)
class Chunk:
    """What the tokens of one chunk ask of every memory: keys, values, step sizes and retention.

    An empty slot has eta 0 and alpha 1 and so does nothing.
    """

    key_BHCK: Tensor
    value_BHCK: Tensor
    eta_BHC: Tensor
    alpha_BHC: Tensor


@dataclass(frozen=True)
class Delta:
    """The parts of a write that all memories share; for DGD one triangular solve over the slots at hand.

    `retained` is the product of alpha from the chunk's start up to each slot. Plain gradient descent has no transfer.
    """

    chunk: Chunk
    retained_BHC: Tensor
    transfer_BHCC: Tensor | None


@dataclass(frozen=True)
class Earlier:
    """Slots of the same chunk that were planned before: their keys and `Write` rows, the product of their alpha."""

    key_BHSK: Tensor
    activation_BHMSF: Tensor
    step_BHMSO: Tensor
    inner_BHMSF: Tensor
    retained_BH1: Tensor


@dataclass(frozen=True)
class Write:
    """What slots write into stacked memories, before it is applied: two low-rank updates, a row a slot each."""

    key_BHCK: Tensor
    activation_BHMCF: Tensor
    step_BHMCO: Tensor
    inner_BHMCF: Tensor


@dataclass(frozen=True)
class Momentum:
    """What earlier chunks wrote and later ones carry on: S of both matrices, and the share mu of it per head."""

    s2_BHMFK: Tensor
    s1_BHMOF: Tensor
    share_H: Tensor


def solve_delta(chunk: Chunk, earlier: Earlier | None = None, rule: Rule = DEFAULT_RULE) -> Delta:
    """T = (I + tril(diag(b) K K^T, -1))^-1 diag(b) with b = eta / alpha (HOPE.md §4.1); none for plain descent."""
    beta = chunk.eta_BHC / chunk.alpha_BHC
    retained = chunk.alpha_BHC if beta.shape[-1] == 1 else torch.cumprod(chunk.alpha_BHC, -1)
    if earlier is not None:
        retained = retained * earlier.retained_BH1
    if rule.write == "gradient":
        return Delta(chunk, retained, None)
    if beta.shape[-1] == 1:
        return Delta(chunk, retained, beta.unsqueeze(-1))
    key = chunk.key_BHCK
    scores = torch.tril(key @ key.transpose(-1, -2), -1) * beta.unsqueeze(-1)
    transfer = torch.linalg.solve_triangular(scores, torch.diag_embed(beta), upper=False, unitriangular=True)
    return Delta(chunk, retained, transfer)


def read(weights: tuple[Tensor, Tensor], x_BHMCK: Tensor, residual: bool) -> Tensor:
    """M(x) of stacked memories -> [B,H,M,C,O]; `residual` adds x (eq. 89)."""
    w2, w1 = weights
    out = functional.silu(x_BHMCK @ w2.transpose(-1, -2)) @ w1.transpose(-1, -2)
    return x_BHMCK + out if residual else out


def plan_write(
    weights: Weights, delta: Delta, residual: bool, earlier: Earlier | None = None, rule: Rule = DEFAULT_RULE
) -> Write:
    """Gradients of the objective of M(k) and sg(M(v)) at the chunk's start, and what the rule makes of them.

    The target is a constant of the inner derivative only: the outer one flows through it (HOPE.md §3, 6). The
    triangular solve goes row by row, so slots that were planned `earlier` stay as they are.
    """
    w2, w1 = weights.total()
    key, value = delta.chunk.key_BHCK.unsqueeze(2), delta.chunk.value_BHCK.unsqueeze(2)
    pre = key @ w2.transpose(-1, -2)
    gate = torch.sigmoid(pre)
    activation = pre * gate
    if rule.objective == "dot":
        error = -read((w2, w1), value, residual)
    else:
        error = (activation - functional.silu(value @ w2.transpose(-1, -2))) @ w1.transpose(-1, -2)
        if residual:
            error = error + (key - value)
    hidden_error = (error @ w1) * (gate + activation * (1 - gate))
    alpha, eta, retained = delta.chunk.alpha_BHC, delta.chunk.eta_BHC, delta.retained_BHC
    if delta.transfer_BHCC is None:
        inner = -(hidden_error * (eta / retained)[:, :, None, :, None])
    else:
        held = pre if weights.fixed_w2_HMFK is None else key @ weights.decaying_w2_BHMFK.transpose(-1, -2)
        if earlier is not None:
            met = delta.chunk.key_BHCK @ earlier.key_BHSK.transpose(-1, -2)
            held = held + met.unsqueeze(2) @ earlier.inner_BHMSF
        wanted = hidden_error * (alpha / retained)[:, :, None, :, None] + held
        inner = -(delta.transfer_BHCC.unsqueeze(2) @ wanted)
    if rule.write == "dgd-layers":
        step = _outer_steps(weights, delta, activation, error, earlier, rule.largest_step)
    else:
        step = error * (eta / retained)[:, :, None, :, None]
    return Write(delta.chunk.key_BHCK, activation, step, inner)


def _outer_steps(
    weights: Weights,
    delta: Delta,
    activation_BHMCF: Tensor,
    error_BHMCO: Tensor,
    earlier: Earlier | None,
    largest_step: float,
) -> Tensor:
    """Rows that the second layer writes under Delta Gradient Descent, whose input is the activation [B,H,M,C,O].

    A key has length 1 and its eta is eta_0 / (1 + eta_0) of eq. 57; an activation of length l gets, of the same
    eta_0, eta_0 / (1 + eta_0 l^2) = eta / (1 - eta + eta l^2). Larger steps are that many times what their share of
    the largest comes to. Each memory has its own triangular solve.
    """
    alpha, eta = (rate.unsqueeze(2) for rate in (delta.chunk.alpha_BHC, delta.chunk.eta_BHC))
    share, square = eta / largest_step, activation_BHMCF.square().sum(-1)
    beta = (eta / ((1 - share + share * square).clamp_min(1e-6) * alpha)).unsqueeze(-1)
    held = activation_BHMCF @ weights.decaying_w1_BHMOF.transpose(-1, -2)
    if earlier is not None:
        held = held - (activation_BHMCF @ earlier.activation_BHMSF.transpose(-1, -2)) @ earlier.step_BHMSO
    wanted = beta * (error_BHMCO * (alpha / delta.retained_BHC.unsqueeze(2)).unsqueeze(-1) + held)
    if wanted.shape[-2] == 1:
        return wanted
    scores = torch.tril(activation_BHMCF @ activation_BHMCF.transpose(-1, -2), -1) * beta
    steps: Tensor = torch.linalg.solve_triangular(scores, wanted, upper=False, unitriangular=True)
    return steps


def apply_write(weights: Weights, write: Write, retained_BH: Tensor, max_drift: float) -> tuple[Tensor, Tensor]:
    """The decaying (W2, W1) after the chunk, each drawn back into the ball of radius `max_drift` (law 6).

    `retained` is the product of alpha over the whole chunk.
    """
    last = retained_BH[:, :, None, None, None]
    w2 = weights.decaying_w2_BHMFK + write.inner_BHMCF.transpose(-1, -2) @ write.key_BHCK.unsqueeze(2)
    w1 = weights.decaying_w1_BHMOF - write.step_BHMCO.transpose(-1, -2) @ write.activation_BHMCF
    return _retain(w2, last, max_drift), _retain(w1, last, max_drift)


def apply_momentum(
    weights: Weights, write: Write, retained_BH: Tensor, max_drift: float, momentum: Momentum
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """As `apply_write` with momentum over chunks: S <- mu S + (what the chunk wrote), M <- retained M + S.

    This is Titans' form (HOPE.md §1(e)) with the chunk as its unit of time: eq. 88 has no momentum although Table 6
    takes one away (HOPE.md §3, 3), and per chunk the read inside a chunk and its closed form stay as they are.

    Returns:
        The decaying (W2, W1) and the new (S2, S1), each within the ball of radius `max_drift`.
    """
    last, share = retained_BH[:, :, None, None, None], momentum.share_H[:, None, None, None]
    one = torch.ones_like(last)
    wrote2 = last * (write.inner_BHMCF.transpose(-1, -2) @ write.key_BHCK.unsqueeze(2))
    wrote1 = last * (write.step_BHMCO.transpose(-1, -2) @ write.activation_BHMCF)
    s2 = _retain(share * momentum.s2_BHMFK + wrote2, one, max_drift)
    s1 = _retain(share * momentum.s1_BHMOF - wrote1, one, max_drift)
    w2 = _retain(last * weights.decaying_w2_BHMFK + s2, one, max_drift)
    return (w2, _retain(last * weights.decaying_w1_BHMOF + s1, one, max_drift)), (s2, s1)


def _retain(matrix: Tensor, retained: Tensor, limit: float) -> Tensor:
    """`retained * matrix`, scaled back where its Frobenius norm (last two axes) would exceed `limit`."""
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    return matrix * torch.minimum(retained, limit / norm.clamp_min(1e-6))


def read_within(
    weights: Weights, write: Write, query_BHNK: Tensor, mask_BHNC: Tensor | None, retained_BHN: Tensor
) -> Tensor:
    """y_t = M_t(q_t) inside the chunk: the state after the writes of the slots that `mask` lets t see (None: all).

    One memory (M = 1). `retained` is the product of alpha up to each query's slot. This is Titans' per-token
    read; the literal eq. 90 reads the boundary state, `read(weights.total(), ...)`.
    """
    retained = retained_BHN.unsqueeze(-1)
    scores = query_BHNK @ write.key_BHCK.transpose(-1, -2)
    if mask_BHNC is not None:
        scores = scores * mask_BHNC
    moved = query_BHNK @ weights.decaying_w2_BHMFK[:, :, 0].transpose(-1, -2) + scores @ write.inner_BHMCF[:, :, 0]
    pre = moved * retained
    if weights.fixed_w2_HMFK is not None:
        pre = pre + query_BHNK @ weights.fixed_w2_HMFK[:, 0].transpose(-1, -2)
    hidden = functional.silu(pre)
    weighted = hidden @ write.activation_BHMCF[:, :, 0].transpose(-1, -2)
    if mask_BHNC is not None:
        weighted = weighted * mask_BHNC
    out = hidden @ weights.decaying_w1_BHMOF[:, :, 0].transpose(-1, -2) - weighted @ write.step_BHMCO[:, :, 0]
    out = query_BHNK + out * retained
    if weights.fixed_w1_HMOF is not None:
        out = out + hidden @ weights.fixed_w1_HMOF[:, 0].transpose(-1, -2)
    return out

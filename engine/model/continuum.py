"""The Continuum Memory System (HOPE.md §1(g), eq. 70 to 74): residual MLP blocks, fast to slow.

A block's initial state is a parameter; what a session (or tenant) has learned is a difference from it that comes
in with the memory. Knows no clocks: when a level learns is decided elsewhere; how, in `update_rule` terms, is
`descend`: one function for every level.

Shapes: B rows, T tokens, D width, F hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import LevelConfig, ModelConfig
from engine.errors import InvalidRequest
from engine.model.layers import RMSNorm
from engine.model.orthogonal_steps import M3, Muon
from engine.model.steps import Adam, DeepMomentum, DeltaMomentum, Rule, State

Difference = tuple[Tensor, Tensor] | None

# f of eq. 71, "any optimizer", for the levels that do not step by plain descent.
LEVEL_RULES: Mapping[str, Rule] = {
    "adamw": Adam(),
    "delta_momentum": DeltaMomentum(),
    "deep_momentum": DeepMomentum(),
    "muon": Muon(),
    "m3": M3(),
}


class ContinuumBlock(nn.Module):
    """x + W1 s(W2 norm(x)) of one level; W2 and W1 are the initial state plus the row's difference."""

    def __init__(self, width: int, level: LevelConfig) -> None:
        super().__init__()
        self.level = level
        self.norm = RMSNorm(width)
        self.w2 = nn.Parameter(torch.randn(level.hidden, width) * width**-0.5)
        self.w1 = nn.Parameter(torch.randn(width, level.hidden) * 0.3 * level.hidden**-0.5)

    def forward(self, x_BTD: Tensor, difference: Difference) -> Tensor:
        """`difference` is (W2 [B,F,D], W1 [B,D,F]), or None where nothing was learned."""
        return x_BTD + self.added(x_BTD, difference)

    def added(self, x_BTD: Tensor, difference: Difference) -> Tensor:
        """What the block adds to the residual stream [B,T,D]."""
        normed = self.norm(x_BTD)
        hidden = functional.linear(normed, self.w2)
        if difference is not None:
            hidden = hidden + normed @ difference[0].transpose(1, 2)
        hidden = functional.silu(hidden)
        out = functional.linear(hidden, self.w1)
        if difference is not None:
            out = out + hidden @ difference[1].transpose(1, 2)
        return out


def mix(x_BTD: Tensor, levels: Sequence[ContinuumBlock], differences: Sequence[Difference], scores_L: Tensor) -> Tensor:
    """Levels side by side (eq. 74): y = x + sum of w_l MLP_l(norm(x)), w the softmax of learned scores [levels]."""
    out = x_BTD
    for share, level, difference in zip(torch.softmax(scores_L, 0), levels, differences, strict=True):
        out = out + share * level.added(x_BTD, difference)
    return out


def restart_faster(
    memory: Mapping[str, Tensor], level_name: str, config: ModelConfig, rows_B: Tensor | None = None
) -> dict[str, Tensor]:
    """The memory after a step of a level where levels are nested (eq. 72): faster ones start again from their
    initial state, that is, from a difference of zero.

    Args:
        memory: any memory; it is not changed. Levels it does not hold are passed over.
        level_name: the level that stepped; it and slower levels stay as they are.
        rows_B: true in the rows that stepped; None means all of them.

    Raises:
        InvalidRequest: the model has no such level.
    """
    names = [level.name for level in config.levels]
    if level_name not in names:
        raise InvalidRequest(f"this model has no level '{level_name}'", param="level")
    faster = tuple(f"{name}." for name in names[: names.index(level_name)])
    after = dict(memory)
    for name, value in memory.items():
        if name.startswith(faster) and not name.endswith(".updates"):
            nothing = torch.zeros_like(value)
            chosen = None if rows_B is None else rows_B.reshape(-1, *[1] * (value.dim() - 1))
            after[name] = nothing if chosen is None else torch.where(chosen, nothing, value)
    return after


def initial_step_state(level: LevelConfig, name: str, difference: Tensor) -> State:
    """What the level's optimizer remembers of one tensor [B, ...], by name (`NAME.momentum`); of `sgd` nothing."""
    if level.optimizer == "sgd":
        return {}
    return {f"{name}.{part}": value for part, value in LEVEL_RULES[level.optimizer].initial(difference).items()}


def weight_names(memory: Mapping[str, Tensor], level_name: str) -> list[str]:
    """The names of a level's differences in a memory, without what its optimizer remembers."""
    return [name for name in memory if name.startswith(f"{level_name}.") and name.endswith((".w1", ".w2"))]


def step_state(memory: Mapping[str, Tensor], names: Sequence[str]) -> State:
    """What the optimizer remembers of the differences of these names."""
    within = tuple(f"{name}." for name in names)
    return {name: value for name, value in memory.items() if name.startswith(within)}


def descend(
    differences: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    level: LevelConfig,
    rate_B: Tensor,
    state: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """One step of a level (eq. 71), for every row alike; differentiable in the differences and, with `sgd`, the rate.

    Args:
        differences, gradients: the level's tensors [B, ...] by name, over all layers.
        level: its optimizer, learning rate, gradient clip and drift bound.
        rate_B: a factor on the learning rate per row; 0 leaves the row as it is.
        state: what the optimizer remembers, as `initial_step_state` names it.

    Returns:
        The differences and the optimizer's state after the step, and the norm of each row's update [B]. A row whose
        gradient is not finite is left unchanged, its state too (its norm is 0).
    """
    norm_B = _norm(gradients)
    finite_B = torch.isfinite(norm_B)
    clip_B = (level.max_update_norm / norm_B.clamp_min(1e-12)).clamp_max(1.0)
    moved: State = {}
    kept: State = {}
    if level.optimizer == "sgd":
        scale_B = level.learning_rate * rate_B * torch.where(finite_B, clip_B, torch.zeros_like(norm_B))
        for name, value in differences.items():
            gradient = torch.nan_to_num(gradients[name], nan=0.0, posinf=0.0, neginf=0.0)
            moved[name] = value - scale_B[:, None, None] * gradient
        update_B = torch.nan_to_num(norm_B * scale_B, nan=0.0, posinf=0.0)
    else:
        clipped = {name: clip_B[:, None, None] * gradient for name, gradient in gradients.items()}
        changes, kept = _by_rule(clipped, level, rate_B, state or {}, finite_B & (rate_B > 0))
        moved = {name: value + changes[name] for name, value in differences.items()}
        update_B = _norm(changes)
    # Where the step is differentiated (learned clocks), the bound is a constant of it: at zero its root has no slope.
    total_B = _norm({name: value.detach() for name, value in moved.items()})
    pull_B = (level.max_drift / total_B.clamp_min(1e-12)).clamp_max(1.0)
    bounded = {name: value * pull_B[:, None, None] for name, value in moved.items()}
    return {**bounded, **kept}, update_B


def _by_rule(
    gradients: Mapping[str, Tensor], level: LevelConfig, rate_B: Tensor, state: Mapping[str, Tensor], moves_B: Tensor
) -> tuple[State, State]:
    """Changes and new state by name; both leave the rows that do not move as they are."""
    changes: State = {}
    kept: State = {}
    for name, gradient in gradients.items():
        prefix = f"{name}."
        held = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        after, change = LEVEL_RULES[level.optimizer].step(held, gradient, level.learning_rate * rate_B)
        changes[name] = change.where(moves_B[:, None, None], 0.0)
        for part, value in after.items():
            rows_B = moves_B.reshape(-1, *[1] * (value.dim() - 1))
            kept[prefix + part] = torch.where(rows_B, value, held[part])
    return changes, kept


def _norm(tensors: Mapping[str, Tensor]) -> Tensor:
    squares = [value.square().sum((1, 2)) for value in tensors.values()]
    return torch.stack(squares).sum(0).sqrt()

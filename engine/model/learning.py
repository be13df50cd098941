"""How a CMS level learns from text: the next-token gradient of what was read, more for what was surprising.

The one way into `continuum.descend` for every level that learns after training: `cms.fast` at the end of a
turn, `cms.medium` in the worker's replay. Knows no sessions.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.config import LevelConfig
from engine.errors import InvalidRequest
from engine.model.continuum import descend, restart_faster, step_state, weight_names
from engine.model.hope import Hope, Memory

SURPRISE_CEILING_NATS = 8.0


@dataclass(frozen=True)
class Lesson:
    """Text to learn from.

    Attributes:
        tokens_BT: token ids, padded at the end.
        lengths_B: real tokens of every row.
        counts_BT: 1 where a token is to be learned, 0 where it is context only.
    """

    tokens_BT: Tensor
    lengths_B: Tensor
    counts_BT: Tensor


@dataclass(frozen=True)
class Learned:
    """What one step did, per row: mean surprise before it, norm of the update (0 where nothing moved)."""

    surprise_B: Tensor
    update_norm_B: Tensor


def level_named(model: Hope, name: str) -> LevelConfig:
    """The configuration of a CMS level.

    Raises:
        InvalidRequest: the model has no such level.
    """
    for level in model.config.levels:
        if level.name == name:
            return level
    raise InvalidRequest(f"this model has no level '{name}'", param="level")


def learn(
    model: Hope, name: str, before: Memory, after: Memory, lesson: Lesson, rate: float = 1.0
) -> tuple[Memory, Learned]:
    """One gradient step of level `name` on a lesson (eq. 71 with the next-token objective).

    Args:
        before: memory from which the lesson is read; the gradient is taken there.
        after: memory that receives the step.
        rate: factor on the level's learning rate.

    Returns:
        `after` with the level's differences moved, and what the step did. Where levels are nested (eq. 72), faster
        ones start again in the rows that moved.

    Raises:
        InvalidRequest: the model has no such level, or the memory does not hold it (a level of another scope).
    """
    level = level_named(model, name)
    names = weight_names(after, name)
    if not names:
        raise InvalidRequest(f"a memory that does not hold '{name}' ({level.scope}) cannot learn it", param="level")
    inputs = {key: before[key].detach().clone().requires_grad_() for key in names}
    with torch.enable_grad():
        losses_BT, shares_BT = _losses(model, {**before, **inputs}, lesson)
        weights_BT = shares_BT * emphasis(losses_BT.detach(), shares_BT)
        objective = (losses_BT * weights_BT).sum(1) / weights_BT.sum(1).clamp_min(1.0)
        gradients = torch.autograd.grad(objective.sum(), list(inputs.values()))
    counted_B = shares_BT.sum(1)
    rate_B = torch.where(counted_B > 0, rate, 0.0)
    with torch.no_grad():
        moved, norm_B = descend(
            {key: after[key] for key in names},
            dict(zip(names, gradients, strict=True)),
            level,
            rate_B,
            step_state(after, names),
        )
        surprise_B = (losses_BT * shares_BT).sum(1) / counted_B.clamp_min(1.0)
    updates = f"{name}.updates"
    learned = {**after, **moved, updates: after[updates] + (norm_B > 0).long()}
    if model.config.chain == "nested":
        learned = restart_faster(learned, name, model.config, norm_B > 0)
    return learned, Learned(surprise_B.detach(), norm_B)


def surprise(model: Hope, memory: Memory, lesson: Lesson) -> Tensor:
    """Mean surprise of every row of a lesson [B], read from this memory; nothing is learned."""
    with torch.no_grad():
        losses_BT, shares_BT = _losses(model, memory, lesson)
        return (losses_BT * shares_BT).sum(1) / shares_BT.sum(1).clamp_min(1.0)


def emphasis(losses_BT: Tensor, shares_BT: Tensor) -> Tensor:
    """Each token's weight [B,T]: its surprise over the row's mean; what is above the ceiling counts no more."""
    bounded = losses_BT.clamp_max(SURPRISE_CEILING_NATS)
    mean = (bounded * shares_BT).sum(1, keepdim=True) / shares_BT.sum(1, keepdim=True).clamp_min(1.0)
    return bounded / mean.clamp_min(1e-6)


def _losses(model: Hope, memory: Memory, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of tokens 1..T-1 in nats, and which of them count."""
    logits, _ = model(lesson.tokens_BT, memory, lesson.lengths_B)
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), lesson.tokens_BT[:, 1:].flatten(), reduction="none")
    return losses.view(lesson.tokens_BT.shape[0], -1), lesson.counts_BT[:, 1:]

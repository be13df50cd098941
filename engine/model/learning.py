"""How a CMS level learns from text: the next-token gradient of what was read, more for what was surprising.

The one way into `continuum.descend` for every level that learns after training: `cms.fast` at the end of a
turn, `cms.medium` in the worker's replay. Knows no sessions.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.config import LevelConfig
from engine.errors import InvalidRequest
from engine.model.continuum import descend, restart_faster, step_state, weight_names
from engine.model.hope import Hope, Memory
from engine.model.rows import row_at, stacked
from engine.tokenizer import PAD

SURPRISE_CEILING_NATS = 8.0

# Rows learn together while the longest is at most this many times the shortest. The bounds keep what a gradient takes
# of memory within what one long message takes: some 0.3 GB of the shipped model.
_LIKE_LENGTH = 1.5
_TOKENS_TOGETHER = 512
_ROWS_TOGETHER = 16


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


@dataclass(frozen=True)
class RowLesson:
    """What one row learns.

    Attributes:
        before: memory from which the lesson is read, batch size 1.
        after: memory that receives the step, batch size 1.
        tokens: the text.
        counts: as many numbers, 1 where a token is to be learned, 0 where it is context only.
    """

    before: Memory
    after: Memory
    tokens: Sequence[int]
    counts: Sequence[float]


def learn_rows(model: Hope, name: str, lessons: Sequence[RowLesson]) -> list[tuple[Memory, float]]:
    """`learn` for rows that share nothing, those of like length in one pass (law 2: as each would alone).

    Returns:
        Of every lesson, in order: the memory after the step, batch size 1, and the norm of the update.
    """
    learned: dict[int, tuple[Memory, float]] = {}
    for group in _alike([len(lesson.tokens) for lesson in lessons]):
        chosen = [lessons[at] for at in group]
        # A step reads and writes levels alone: the memories that it lands on are not stacked whole.
        levels = [{key: one.after[key] for key in one.after if key.startswith("cms.")} for one in chosen]
        batch, done = learn(model, name, stacked([one.before for one in chosen]), stacked(levels), _one_lesson(chosen))
        for row, (at, lesson, own) in enumerate(zip(group, chosen, levels, strict=True)):
            moved = row_at({key: batch[key] for key in own}, row)
            learned[at] = ({**lesson.after, **moved}, float(done.update_norm_B[row]))
    return [learned[at] for at in range(len(lessons))]


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of like lengths put together."""
    groups: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        room = min(_ROWS_TOGETHER, _TOKENS_TOGETHER // max(1, lengths[at]))
        if groups and lengths[at] <= lengths[groups[-1][0]] * _LIKE_LENGTH and len(groups[-1]) < room:
            groups[-1].append(at)
        else:
            groups.append([at])
    return groups


def _one_lesson(lessons: Sequence[RowLesson]) -> Lesson:
    lengths = [len(lesson.tokens) for lesson in lessons]
    tokens_BT, counts_BT = torch.full((len(lessons), max(lengths)), PAD), torch.zeros(len(lessons), max(lengths))
    for row, lesson in enumerate(lessons):
        tokens_BT[row, : lengths[row]] = torch.tensor(lesson.tokens)
        counts_BT[row, : lengths[row]] = torch.tensor(lesson.counts)
    return Lesson(tokens_BT, torch.tensor(lengths), counts_BT)


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

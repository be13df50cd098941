"""Replay: a session's turns are read again, as if for the first time, and `cms.medium` learns from them.

The fast levels start fresh, so they cannot answer for what was told: what is learned has to sit in
`cms.medium`. Knows turns and tensors; no store and no clock.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import CMS_MEDIUM
from engine.consolidation.policy import ReplayPolicy
from engine.core import Turn
from engine.model.continuum import restart_faster
from engine.model.hope import POSITION, Hope, Memory
from engine.model.learning import Lesson, learn, surprise
from engine.model.portable import level_of, pack_row, unpack_row
from engine.tokenizer import ASSISTANT, END, PAD, Tokenizer

UPDATES = f"{CMS_MEDIUM}.updates"


@dataclass(frozen=True)
class Row:
    """A piece of a turn to be read from a fresh memory.

    Attributes:
        tokens: the piece; its first token is context only.
        counts: 1 for the tokens to be learned, 0 for the turn's frame.
        weight: its share of a step; all rows of a portion add up to 1.
    """

    tokens: tuple[int, ...]
    counts: tuple[float, ...]
    weight: float


@dataclass(frozen=True)
class Step:
    """What one step met and did.

    Attributes:
        surprise: mean surprise of the rows before it, in nats.
        update_norm: of the whole update.
        num_unmoved: rows that were left out, since their gradient was not finite.
    """

    surprise: float
    update_norm: float
    num_unmoved: int


def medium_of(tensors: Mapping[str, Tensor], model: Hope) -> Memory:
    """The `cms.medium` of a memory as it is stored: batch size 1, zero where it was never written."""
    stored = {name: value for name, value in tensors.items() if level_of(name) == CMS_MEDIUM}
    return {name: value for name, value in unpack_row(stored, model).items() if level_of(name) == CMS_MEDIUM}


def with_medium(tensors: Mapping[str, Tensor], medium: Memory, model: Hope) -> dict[str, Tensor]:
    """A stored memory with this `cms.medium` in place of its own; nothing else is touched."""
    others = {name: value for name, value in tensors.items() if level_of(name) != CMS_MEDIUM}
    if model.config.chain == "nested":
        others = restart_faster(others, CMS_MEDIUM, model.config)
    position = torch.zeros(1, dtype=torch.int64)
    return {**others, **pack_row({**medium, POSITION: position}, model.config.chunk_projections)}


def compose(turns: Sequence[Turn], tokenizer: Tokenizer, policy: ReplayPolicy) -> list[Row]:
    """The rows of a portion: each turn as it was read and said, the more surprising ones weighing more."""
    rows: list[Row] = []
    for turn, weight in zip(turns, policy.weights([turn.memory.surprise for turn in turns]), strict=True):
        tokens, counts = _stream(turn, tokenizer)
        pieces = list(_pieces(tokens, counts, policy.piece_tokens))
        total = sum(sum(piece_counts) for _, piece_counts in pieces)
        for piece, piece_counts in pieces:
            rows.append(Row(piece, piece_counts, weight * sum(piece_counts) / total))
    return sorted(rows, key=lambda row: len(row.tokens))


def step(model: Hope, medium: Memory, rows: Sequence[Row], policy: ReplayPolicy, rate: float) -> tuple[Memory, Step]:
    """One gradient step of `cms.medium`: the weighted mean of the steps that each row alone would take.

    Every row's step is clipped by itself, so none of them can drown the others, and one that is not finite is
    left out. A mean of memories within the drift bound is within it.
    """
    floats = [name for name, value in medium.items() if value.is_floating_point()]
    moved = {name: torch.zeros_like(medium[name]) for name in floats}
    counts: Memory = {}
    met, num_unmoved = 0.0, 0
    for batch in _batches(rows, policy.rows_per_batch):
        before = _fresh(model, medium, len(batch))
        after, learned = learn(model, CMS_MEDIUM, before, before, _lesson(batch), rate)
        weight_B = _weights(batch)
        for name in floats:
            moved[name] += ((after[name] - before[name]) * weight_B[:, None, None]).sum(0, keepdim=True)
        # An optimizer's clock goes on where any row moved.
        clocks = {name: value for name, value in after.items() if name in medium and name not in moved}
        for name, value in clocks.items():
            latest = value.max(0, keepdim=True).values
            counts[name] = torch.maximum(counts.get(name, latest), latest)
        met += float((learned.surprise_B * weight_B).sum())
        num_unmoved += int((learned.update_norm_B == 0).sum())
    norm = float(torch.stack([value.square().sum() for value in moved.values()]).sum().sqrt())
    stepped = {name: medium[name] + value for name, value in moved.items()}
    return {**counts, **stepped, UPDATES: medium[UPDATES] + (norm > 0)}, Step(met, norm, num_unmoved)


def mean_surprise(model: Hope, medium: Memory, rows: Sequence[Row], policy: ReplayPolicy) -> float:
    """Surprise of the rows in nats, read with this `cms.medium` and fast levels that know nothing."""
    total = 0.0
    for batch in _batches(rows, policy.rows_per_batch):
        surprise_B = surprise(model, _fresh(model, medium, len(batch)), _lesson(batch))
        total += float((surprise_B * _weights(batch)).sum())
    return total


def is_finite(medium: Memory) -> bool:
    """Whether every number of it is one."""
    return all(bool(torch.isfinite(value).all()) for value in medium.values())


def _stream(turn: Turn, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """The turn's tokens and which of them are to be learned: what was said, not the frame around it."""
    reply = tokenizer.encode(turn.reply)
    tokens = [*tokenizer.read_turn(turn.message, reply=bool(reply)), *reply]
    if reply:
        tokens.append(END)
    counts = [0.0 if token == ASSISTANT else 1.0 for token in tokens]
    # Where a reply was cut at its length, or none was given, its end is no news about how to speak.
    if turn.finish_reason != "stop" or not reply:
        counts[-1] = 0.0
    return tokens, counts


def _pieces(
    tokens: Sequence[int], counts: Sequence[float], size: int
) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Cuts a stream so that each token is learned once: a piece opens with the last one's final token."""
    for start in range(0, len(tokens) - 1, size - 1):
        piece = slice(start, start + size)
        piece_counts = (0.0, *counts[piece][1:])
        if any(piece_counts):
            yield tuple(tokens[piece]), piece_counts


def _batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _lesson(rows: Sequence[Row]) -> Lesson:
    longest = max(len(row.tokens) for row in rows)
    tokens = [[*row.tokens, *[PAD] * (longest - len(row.tokens))] for row in rows]
    counts = [[*row.counts, *[0.0] * (longest - len(row.counts))] for row in rows]
    return Lesson(torch.tensor(tokens), torch.tensor([len(row.tokens) for row in rows]), torch.tensor(counts))


def _fresh(model: Hope, medium: Memory, num_rows: int) -> Memory:
    with torch.no_grad():
        memory = model.initial_memory(num_rows)
        shared = {name: value.expand(num_rows, *value.shape[1:]) for name, value in medium.items()}
    return {**memory, **shared}


def _weights(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([row.weight for row in rows])

"""What a task gives and how it is marked: rows of tokens, the targets that count, answers right or wrong.

A task is text with questions in it; any model that reads tokens and carries a memory can sit it. Knows no models
by name and no training.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.model.hope import Memory


@dataclass(frozen=True)
class Examples:
    """Rows of a task.

    Attributes:
        tokens_BT: token ids.
        target_BT: the token after each.
        counts_BT: True where the target belongs to an answer; each unbroken run of them is one answer.
    """

    tokens_BT: Tensor
    target_BT: Tensor
    counts_BT: Tensor

    @staticmethod
    def of(rows: list[list[int]], answers: list[list[bool]]) -> Examples:
        """Examples of rows of equal length; `answers` marks the tokens that belong to an answer."""
        tokens, marks = torch.tensor(rows), torch.tensor(answers)
        return Examples(tokens[:, :-1], tokens[:, 1:], marks[:, 1:])


class Task(Protocol):
    """Something to learn and to be tested on; the same for every model."""

    name: str
    vocab_size: int

    def training(self, seed: int, step: int) -> Examples:
        """The rows of one training step; a step of a seed is always the same."""

    def validation(self, seed: int) -> Examples:
        """Rows like those of training, never among them: learning rates are chosen on these."""

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """Conditions, as "pairs 16" or "bin 1", each with its rows."""


class Model(Protocol):
    """Anything that reads tokens and carries a memory: Hope, and every baseline."""

    def initial_memory(self, batch_size: int, levels: bool = True) -> Memory:
        """Memory of rows that have read nothing."""

    def hidden(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        """Normed residual stream [B,T,D] and the memory after the last token."""

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Next-token logits of a residual stream."""


@dataclass(frozen=True)
class Mark:
    """Share of answers whose every token is right, mean loss of the answers' tokens in nats, number of answers."""

    accuracy: float
    loss: float
    num_answers: int


@torch.no_grad()
def mark(model: Model, examples: Examples, piece: int = 1024, rows: int = 8) -> Mark:
    """Marks a model's answers: every answer token is the most likely one, the ones before it given.

    Args:
        piece: tokens read at a time; the memory is carried, so that long rows need no more room than short ones.
        rows: rows read at a time.
    """
    right = num_answers = num_tokens = 0
    loss = 0.0
    for first in range(0, examples.tokens_BT.shape[0], rows):
        own = slice(first, first + rows)
        hits, losses = _answer_tokens(model, examples, own, piece)
        counts = examples.counts_BT[own]
        for begin, end in (span for span in _answers(counts)):
            num_answers += 1
            right += bool(hits[begin:end].all())
        num_tokens += int(counts.sum())
        loss += float(losses.sum())
    return Mark(right / max(1, num_answers), loss / max(1, num_tokens), num_answers)


def _answer_tokens(model: Model, examples: Examples, own: slice, piece: int) -> tuple[Tensor, Tensor]:
    """Of some rows, flat over [B * T]: whether each token that counts was guessed, and its loss; else False and 0."""
    tokens, targets, counts = examples.tokens_BT[own], examples.target_BT[own], examples.counts_BT[own]
    memory = model.initial_memory(tokens.shape[0], levels=False)
    hits, losses = torch.zeros_like(counts), torch.zeros(counts.shape)
    for start in range(0, tokens.shape[1], piece):
        part = slice(start, start + piece)
        x_BTD, memory = model.hidden(tokens[:, part], memory)
        asked = counts[:, part]
        logits = model.logits(x_BTD[asked])
        hits[:, part][asked] = logits.argmax(-1) == targets[:, part][asked]
        losses[:, part][asked] = functional.cross_entropy(logits, targets[:, part][asked], reduction="none")
    return hits.flatten(), losses


def _answers(counts_BT: Tensor) -> Iterator[tuple[int, int]]:
    """Runs of marked tokens as places in the flat rows; a run ends with its row."""
    num_tokens = counts_BT.shape[1]
    for row, marks in enumerate(counts_BT.tolist()):
        begin: int | None = None
        for at, counted in enumerate([*marks, False]):
            if counted and begin is None:
                begin = at
            elif not counted and begin is not None:
                yield row * num_tokens + begin, row * num_tokens + at
                begin = None

"""Dreams: questions with their replies, as rows of a batch, and how likely a memory makes them.

Who dreams them up, and why, is `dreamer.py`'s to say.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from engine.core import Turn
from engine.model.hope import Hope, Memory
from engine.tokenizer import END, PAD, Tokenizer

# How far the word that was said stands out for one who is sure of it.
CERTAIN_NATS = 16

Row = TypeVar("Row")


@dataclass(frozen=True)
class Dream:
    """A question and its reply, as one stream of tokens.

    Attributes:
        tokens: the user's frame, the question, the assistant's frame, the reply and its end.
        reply_at: where the assistant's frame stands: what it is followed by is learned.
        news: nats that the reply gained by what was read.
    """

    tokens: tuple[int, ...]
    reply_at: int
    news: float = 0.0

    @property
    def question(self) -> tuple[int, ...]:
        """The tokens up to the reply."""
        return self.tokens[: self.reply_at]

    def narrowed(self, value: Sequence[int]) -> Dream:
        """The dream up to the end of this value, which its reply says, as one whose reply begins there."""
        size = len(value)
        starts = range(self.reply_at + 1, len(self.tokens) - size + 1)
        at = next(at for at in starts if self.tokens[at : at + size] == tuple(value))
        return Dream(self.tokens[: at + size], at - 1)

    def replying(self, value: Sequence[int]) -> Dream:
        """The same question with this reply, and without an end."""
        return Dream((*self.tokens[: self.reply_at + 1], *value), self.reply_at)


@dataclass(frozen=True)
class Example:
    """A dream, log-probabilities of how it was answered, of the places that count [N,V], and whose it is.

    What is asked `at_home` is asked of the session itself, with its own memory; else of one that was told nothing.
    """

    dream: Dream
    answer_NV: Tensor
    session: str = ""
    at_home: bool = False


class Kept(NamedTuple):
    """What must stay as it is.

    Attributes:
        calm: small talk, and questions that come to the mind of one who was told nothing; most have no answer.
        quiet: questions that resemble what was told, and have no answer either.
        asked: others like the calm ones, to ask afterwards.
    """

    calm: list[Dream]
    quiet: list[Dream]
    asked: list[Dream]


@dataclass(frozen=True)
class Rows:
    """Dreams as a batch: tokens [B,T], lengths [B], and 1 where the next token belongs to a reply [B,T]."""

    tokens_BT: Tensor
    lengths_B: Tensor
    counts_BT: Tensor


def once(dreams: Iterable[Dream]) -> list[Dream]:
    """Each question once, as it was answered last."""
    return list({dream.question: dream for dream in dreams}.values())


def as_read(tokenizer: Tokenizer, turn: Turn) -> list[int]:
    """A turn's tokens, its reply with them if it has one."""
    reply = [*tokenizer.encode(turn.reply), END] if turn.reply else []
    return [*tokenizer.read_turn(turn.message, reply=bool(turn.reply)), *reply]


def as_said(tokens: Sequence[int], vocab_size: int, session: str) -> Example:
    """A turn as if someone who was sure of every word had dreamt it."""
    return Example(Dream(tuple(tokens), 0), sure_of(tokens[1:], vocab_size), session)


def sure_of(tokens: Sequence[int], vocab_size: int) -> Tensor:
    """Log-probabilities [N,V] of one who is sure of these tokens."""
    sure_NV = torch.nn.functional.one_hot(torch.tensor(tokens), vocab_size) * CERTAIN_NATS
    return torch.log_softmax(sure_NV.float(), -1).half()


def examples(
    model: Hope, memory: Memory, dreams: Sequence[Dream], session: str = "", *, at_home: bool = False
) -> list[Example]:
    """Dreams with the answers that this memory (batch size 1) gives; at least one dream."""
    rows = as_rows(dreams)
    with torch.no_grad():
        chances_NV, places = log_chances(model, memory, rows)
    each = torch.split(chances_NV.half(), places.sum(1).tolist())
    return [Example(dream, answer_NV, session, at_home) for dream, answer_NV in zip(dreams, each, strict=True)]


def less_sure(certain: Example, without: Example, value: Sequence[int] | None, certainty: float) -> Example:
    """The same dream, in which a value is named with as much certainty; the rest is what is said without the news.

    Only there: whoever knows something says so, but what it is may be outweighed.

    Args:
        without: the same dream, answered from a memory that does not know.
        value: what the reply tells; None where it tells nothing.
        certainty: above 0, at most 1.
    """
    if value is None or certainty >= 1.0:
        return certain
    begins = certain.dream.narrowed(value).reply_at - certain.dream.reply_at
    there = slice(begins, begins + len(value))
    parts = (certain.answer_NV[there] + math.log(certainty), without.answer_NV[there] + math.log1p(-certainty))
    answer_NV = certain.answer_NV.clone()
    answer_NV[there] = torch.logaddexp(parts[0].float(), parts[1].float()).half()
    return replace(certain, answer_NV=answer_NV)


def as_rows(dreams: Sequence[Dream]) -> Rows:
    """Dreams of different lengths as one batch."""
    tokens_BT, lengths_B = padded([dream.tokens for dream in dreams])
    counts_BT = torch.zeros(tokens_BT.shape)
    for at, dream in enumerate(dreams):
        counts_BT[at, dream.reply_at : len(dream.tokens) - 1] = 1.0
    return Rows(tokens_BT, lengths_B, counts_BT)


def batches(rows: Sequence[Row], size: int = 32) -> Iterator[Sequence[Row]]:
    """Parts of so many."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def log_chances(model: Hope, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the replies' next tokens [N,V], read from this memory (batch size 1), and where those are
    [B,T]."""
    spread = {name: value.expand(len(rows.tokens_BT), *value.shape[1:]) for name, value in memory.items()}
    hidden_BTD, _ = model.hidden(rows.tokens_BT, spread, rows.lengths_B)
    places = rows.counts_BT > 0
    return torch.log_softmax(model.logits(hidden_BTD[places]), -1), places


def next_tokens(rows: Rows) -> Tensor:
    """What follows at every place [B,T]; at a row's last one it means nothing."""
    return rows.tokens_BT.roll(-1, 1)


def likelihood(model: Hope, memory: Memory, rows: Rows) -> Tensor:
    """Log-likelihood of every row's reply [B] in nats, read from this memory (batch size 1)."""
    chances_NV, places = log_chances(model, memory, rows)
    own_N = chances_NV.gather(-1, next_tokens(rows)[places][:, None])[:, 0]
    return torch.zeros(len(rows.tokens_BT)).index_add(0, places.nonzero()[:, 0], own_N)


def padded(streams: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Streams as one batch [B,T], and their lengths [B]."""
    longest = max(len(stream) for stream in streams)
    tokens_BT = torch.tensor([[*stream, *[PAD] * (longest - len(stream))] for stream in streams])
    return tokens_BT, torch.tensor([len(stream) for stream in streams])

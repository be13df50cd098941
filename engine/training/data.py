"""Batches of memory dialogues, and of plain text beside them: endless, and the same for the same seed.

Held-out relations, phrases and values never occur in training. Knows text and tokens; no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.tokenizer import ASSISTANT, END, USER, Tokenizer
from engine.training.dialogue import Dialogue, Line, Stage
from engine.training.stream import Position, TextStream
from engine.training.talk import Talk

REPLY_WEIGHT, VALUE_WEIGHT, MESSAGE_WEIGHT, TALK_WEIGHT, TEXT_WEIGHT = 1.0, 3.0, 0.25, 0.4, 0.4

# Many an answer is a value from its first word on; not to know weighs little less, or a guess would pay.
UNKNOWN_WEIGHT = 1.5

# Facts of open relations among all facts of training.
OPEN_SHARE = 0.5


# Token ids of a row, the weight of each as a target, and whether it belongs to an answer's value.
Row = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Batch:
    """Rows of dialogues. `weight` is each target's share of the loss, `value` marks the values of answers.

    `goes_on`: the rows continue those of the step before, and so does their memory.
    """

    tokens_BT: Tensor
    target_BT: Tensor
    weight_BT: Tensor
    value_BT: Tensor
    goes_on: bool = False


class DialogueData:
    """Batches of memory dialogues; batch n of a seed is always the same.

    Args:
        text: rows of plain text to go with them. Then batches are to be asked for one after another: the text goes on
            where the batch before left it, wherever `go_on` says a run stands.
        text_share: share of all rows that are plain text, from 0 to 1; over the steps exactly so.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        talk: Talk,
        seed: int,
        text: TextStream | None = None,
        text_share: float = 0.5,
    ) -> None:
        self.tokenizer, self.talk, self.seed = tokenizer, talk, seed
        self._text, self._text_share = text, text_share
        # The rows of the dialogues that go on, whole, by the step they began with; and where the text stood before.
        self._long: tuple[object, list[Row]] = (None, [])
        self._text_before = Position()
        # Who makes the dialogues of training in place of `dialogues`: of a first step, a stage and a number of rows.
        self.source: Callable[[int, Stage, int], list[Row]] | None = None

    def text_position(self, step: int, stage: Stage) -> str | None:
        """Where the text stands for `go_on` before the batch of `step`; None without text."""
        if self._text is None:
            return None
        in_the_middle = self._long[0] == _which(step, stage, {})
        return (self._text_before if in_the_middle else self._text.position).to_json()

    def go_on(self, text_position: str) -> None:
        """Takes the text up where another run's data stood; does nothing without text."""
        if self._text is not None:
            self._text.seek(Position.from_json(text_position))

    def batch(self, step: int, stage: Stage, **held_out: bool) -> Batch:
        """The batch of one training step; `held_out*` as for `Dialogue`.

        Dialogues of a stage with several segments begin at the steps that `segments` divides.
        """
        segment = step % stage.segments
        rows = self._rows(step - segment, stage, held_out)
        own = slice(segment * stage.num_tokens, (segment + 1) * stage.num_tokens + 1)
        tokens, weights, values = (torch.from_numpy(np.stack([row[part][own] for row in rows])) for part in range(3))
        return Batch(tokens[:, :-1], tokens[:, 1:], weights[:, 1:], values[:, 1:], segment > 0)

    def _rows(self, first_step: int, stage: Stage, held_out: dict[str, bool]) -> list[Row]:
        which = _which(first_step, stage, held_out)
        if self._long[0] != which:
            num_text = self._num_text(first_step // stage.segments, stage.num_rows)
            count = stage.num_rows - num_text
            if held_out or self.source is None:
                rows = self.dialogues(first_step, stage, count, **held_out)
            else:
                rows = self.source(first_step, stage, count)
            self._long = which, [*rows, *self._text_rows(num_text, stage)]
        return self._long[1]

    def dialogues(self, first_step: int, stage: Stage, count: int, **held_out: bool) -> list[Row]:
        """The first `count` rows, over all segments, of the dialogues that begin at `first_step`."""
        seeds = [f"{self.seed}:{first_step}:{row}" for row in range(count)]
        return [self._row(random.Random(seed), stage, held_out) for seed in seeds]

    def _num_text(self, number: int, num_rows: int) -> int:
        """Rows of text in the batch of that number: what is lost to rounding in one is made up for in the next."""
        share = self._text_share * num_rows if self._text is not None else 0.0
        return int((number + 1) * share) - int(number * share)

    def _text_rows(self, count: int, stage: Stage) -> list[Row]:
        if self._text is None:
            return []
        self._text_before = self._text.position
        size = stage.num_tokens * stage.segments + 1
        return [_as_row(ids, [TEXT_WEIGHT] * size, [False] * size) for ids in self._text.rows(count, size)]

    def _row(self, rng: random.Random, stage: Stage, held_out: dict[str, bool]) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        values: list[bool] = []
        size = stage.num_tokens * stage.segments + 1
        for line in self._dialogue(rng, held_out).lines(stage):
            for part, weight, is_value in self._parts(line):
                ids += part
                weights += [weight] * len(part)
                values += [is_value] * len(part)
            if len(ids) >= size:
                break
        return _as_row(ids[:size], weights[:size], values[:size])

    def _dialogue(self, rng: random.Random, held_out: dict[str, bool]) -> Dialogue:
        values, phrases, relations = (
            held_out.get(name, False) for name in ("held_out", "held_out_phrases", "held_out_relations")
        )
        return Dialogue(rng, self.talk, values, phrases, relations, open_share=OPEN_SHARE, dressed=True)

    def _parts(self, line: Line) -> Iterator[tuple[list[int], float, bool]]:
        """(ids, weight of each as a target, whether it is an answer's value) of one turn."""
        encode = self.tokenizer.encode
        yield [USER], 0.0, False
        yield encode(line.message), MESSAGE_WEIGHT, False
        if line.reply is None:
            yield [END], 0.0, False
            return
        yield [ASSISTANT], 0.0, False
        weight = TALK_WEIGHT if line.is_talk else UNKNOWN_WEIGHT if line.is_unknown else REPLY_WEIGHT
        ids = encode(line.reply)
        begin, end = _span(ids, encode(line.value) if line.value else [])
        yield ids[:begin], weight, False
        yield ids[begin:end], VALUE_WEIGHT, True
        yield ids[end:], weight, False
        yield [END], weight, False


def _as_row(ids: list[int], weights: list[float], values: list[bool]) -> Row:
    return np.array(ids, np.int64), np.array(weights, np.float32), np.array(values, np.bool_)


def _which(step: int, stage: Stage, held_out: dict[str, bool]) -> object:
    """What the rows of a step's dialogues are determined by."""
    return step - step % stage.segments, stage, sorted(held_out.items())


def count_recalled(right_BT: Tensor, value_BT: Tensor) -> tuple[int, int, int, int]:
    """Of the values in rows: right ones and all, right tokens and all. A value that its row cuts off has only tokens.

    Args:
        right_BT: where the guess was the target.
        value_BT: the values' tokens, as in `Batch`.
    """
    whole = [
        bool(right_T[begin:end].all())
        for right_T, value_T in zip(right_BT, value_BT, strict=True)
        for begin, end in _stretches(value_T.tolist())
    ]
    return sum(whole), len(whole), int(right_BT[value_BT].sum()), int(value_BT.sum())


def _stretches(marks: list[bool]) -> Iterator[tuple[int, int]]:
    """Runs of true marks that end within the row."""
    begin: int | None = None
    for index, mark in enumerate(marks):
        if mark and begin is None:
            begin = index
        elif not mark and begin is not None:
            yield begin, index
            begin = None


def _span(ids: list[int], part: list[int]) -> tuple[int, int]:
    """Where `part` stands in `ids`; an empty span at the end where it does not."""
    for start in range(len(ids) - len(part) + 1 if part else 0):
        if ids[start : start + len(part)] == part:
            return start, start + len(part)
    return len(ids), len(ids)


def tokenizer_texts(talk: Talk, seed: int, num_dialogues: int = 4000) -> Iterator[str]:
    """Text to train the tokenizer on: dialogues of all corpora, prose, and generated memory dialogues."""
    rng = random.Random(seed)
    stage = Stage(0, 0, 6, 0.0)
    for _ in range(num_dialogues):
        lines = Dialogue(rng, talk).lines(stage)
        for _ in range(8):
            line = next(lines)
            yield line.message
            yield line.reply or ""
    for runs in talk.runs.values():
        for run in rng.sample(runs, min(len(runs), 6000)):
            for message, reply in run:
                yield message
                yield reply
    yield from rng.sample(talk.paragraphs, min(len(talk.paragraphs), 6000))

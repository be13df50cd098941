"""Marking: an answer is right when all of its tokens are, however the row is cut and however many are read at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.evaluation.examples import Examples, mark
from engine.model.hope import Memory
from tests.engine.evaluation.copying import ASK, Copying
from tests.tiny import tiny_model

VOCAB = 5


class Parrot:
    """Always says the token that it has just read; its memory counts what it has read."""

    def initial_memory(self, batch_size: int, levels: bool = True) -> Memory:
        return {"read": torch.zeros(batch_size, dtype=torch.int64)}

    def hidden(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        x_BTD = torch.nn.functional.one_hot(tokens_BT, VOCAB).float()
        return x_BTD, {"read": memory["read"] + tokens_BT.shape[1]}

    def logits(self, x_BTD: Tensor) -> Tensor:
        return 10 * x_BTD


def test_an_answer_is_right_when_all_its_tokens_are() -> None:
    rows = [[1, 1, 1, 2, 2, 3], [4, 4, 0, 0, 1, 1]]
    answers = [[False, True, True, False, True, True], [False, True, False, True, False, True]]
    # Row 1: "1 1" right, "2 3" half right; row 2: all three right.
    found = mark(Parrot(), Examples.of(rows, answers))
    assert (found.accuracy, found.num_answers) == (4 / 5, 5)
    right = -math.log(math.exp(10) / (math.exp(10) + VOCAB - 1))
    assert found.loss == pytest.approx((6 * right + (10 + right)) / 7, rel=1e-5)


def test_an_answer_ends_with_its_row() -> None:
    found = mark(Parrot(), Examples.of([[1, 1], [1, 1]], [[False, True], [False, True]]))
    assert found.num_answers == 2


def test_pieces_and_rows_at_a_time_change_nothing() -> None:
    examples = next(iter(Copying().tests(0)))[1]
    model = tiny_model(vocab_size=ASK + 1)
    whole = mark(model, examples)
    for piece, rows in ((1, 8), (5, 3), (1024, 1)):
        cut = mark(model, examples, piece=piece, rows=rows)
        assert cut.num_answers == whole.num_answers
        assert cut.accuracy == whole.accuracy
        assert cut.loss == pytest.approx(whole.loss, rel=1e-4)


def test_no_answer_is_no_accuracy() -> None:
    assert mark(Parrot(), Examples.of([[1, 1]], [[False, False]])).accuracy == 0.0

"""The batch: rows come and go, read what is theirs, and keep their memory whoever else is there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import CMS_FAST
from engine.model.hope import POSITION, Memory
from engine.model.shared import initial_shared, with_shared
from engine.runner import Runner
from engine.tokenizer import PAD
from tests.tiny import distance, initial, memory_distance, named_model, random_tokens, same_bits, tiny_model

TOLERANCE = 1e-4
MODEL = named_model("initial")


@torch.no_grad()
def _after(num_tokens: int, seed: int) -> Memory:
    memory: Memory = MODEL(random_tokens(MODEL, 1, num_tokens, seed), initial(MODEL))[1]
    return memory


def _tokens(count: int, seed: int) -> list[int]:
    tokens: list[int] = random_tokens(MODEL, 1, count, seed)[0].tolist()
    return tokens


def test_a_row_that_enters_and_leaves_has_the_memory_it_came_with() -> None:
    runner, memories = Runner(MODEL), {row: _after(3 + row, row) for row in (7, 2, 5)}
    runner.enter(memories)
    for rows in ([2], [5, 7]):
        assert all(same_bits(runner.memory(row), memories[row]) for row in rows)
        left = runner.leave(rows)
        assert list(left) == rows
        assert all(same_bits(left[row], memories[row]) for row in rows)
    runner.enter({2: memories[2]})
    assert same_bits(runner.leave([2])[2], memories[2])


def test_what_happens_to_a_row_does_not_change_the_memory_that_was_handed_over() -> None:
    runner, mine = Runner(MODEL), _after(5, 0)
    before = {name: value.clone() for name, value in mine.items()}
    runner.enter({1: mine})
    runner.replace({1: {POSITION: torch.tensor([0])}})
    runner.step({1: _tokens(3, 1)})
    assert same_bits(mine, before)


def test_a_copy_of_a_row_does_not_change_with_it() -> None:
    runner = Runner(MODEL)
    runner.enter({1: initial(MODEL)})
    copy = runner.memory(1)
    kept = {name: value.clone() for name, value in copy.items()}
    runner.step({1: _tokens(8, 1)})
    assert same_bits(copy, kept)
    runner.memory(1)[POSITION].fill_(99)
    assert int(runner.memory(1)[POSITION]) == 8


def test_replace_sets_these_tensors_of_this_row_and_nothing_else() -> None:
    runner, memories = Runner(MODEL), {row: _after(9, row) for row in range(4)}
    runner.enter(memories)
    name = f"{CMS_FAST}.0.w2"
    written = {row: {name: torch.randn_like(memories[row][name])} for row in (1, 3)}
    runner.replace(written)
    for row, memory in memories.items():
        assert same_bits(runner.memory(row), {**memory, **written.get(row, {})})


def test_a_row_without_tokens_rests() -> None:
    runner = Runner(MODEL)
    resting = _after(6, 1)
    runner.enter({1: resting})
    runner.enter({2: initial(MODEL)})
    logits = runner.step({2: _tokens(4, 2)})
    assert {row: tuple(value.shape) for row, value in logits.items()} == {2: (4, MODEL.config.vocab_size)}
    assert memory_distance(runner.memory(1), resting) <= TOLERANCE
    assert int(runner.memory(2)[POSITION]) == 4


def test_a_step_of_nothing_is_nothing() -> None:
    runner = Runner(MODEL)
    assert runner.step({}) == {}
    mine = _after(4, 1)
    runner.enter({1: mine})
    assert runner.step({}) == {}
    assert runner.step({1: []}) == {}
    assert same_bits(runner.memory(1), mine)


def test_a_row_may_read_the_token_that_pads() -> None:
    runner = Runner(MODEL)
    runner.enter({1: initial(MODEL)})
    runner.enter({2: initial(MODEL)})
    runner.step({1: [PAD], 2: [9, PAD, 9]})
    assert [int(runner.memory(row)[POSITION]) for row in (1, 2)] == [1, 3]


def test_a_row_that_is_not_there_is_an_error() -> None:
    runner = Runner(MODEL)
    runner.enter({1: initial(MODEL)})
    runner.leave([1])
    for ask in (lambda row: runner.leave([row]), runner.memory):
        with pytest.raises(ValueError, match="not in list"):
            ask(1)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 11), st.sampled_from(["read", "read", "come", "go"])), max_size=12
    )
)
@settings(max_examples=60, deadline=None)
def test_each_row_ends_as_if_it_had_read_alone(script: list[tuple[int, int, str]]) -> None:
    """Rows join and leave at any point and read shares of any length, up to their chunk's end."""
    runner = Runner(MODEL)
    alone: dict[int, Memory] = {}
    for step, (row, count, what) in enumerate(script):
        if what == "come" and row not in alone:
            alone[row] = _after(row * 3, row) if row else initial(MODEL)
            runner.enter({row: alone[row]})
        elif what == "go" and row in alone:
            assert memory_distance(runner.leave([row])[row], alone.pop(row)) <= TOLERANCE
        elif what == "read" and alone:
            tokens = {r: _tokens(1 + (count + r) % 5, step) for r in alone if (count + r) % 3 or r == row}
            logits = runner.step(tokens)
            assert logits.keys() == tokens.keys()
            for reader, ids in tokens.items():
                with torch.no_grad():
                    expected, alone[reader] = MODEL(torch.tensor([ids]), alone[reader])
                assert distance(logits[reader], expected[0]) <= TOLERANCE
    for row, memory in alone.items():
        assert memory_distance(runner.memory(row), memory) <= TOLERANCE


def test_rows_under_a_generation_and_rows_without_one_run_together() -> None:
    model = tiny_model(writes_hard=False)
    shared = {
        name: torch.full_like(value, 0.05) if value.is_floating_point() else value
        for name, value in initial_shared(model).items()
    }
    with_it = with_shared(model.initial_memory(1), shared)
    tokens = list(range(10, 19))
    alone = {}
    for row, memory in ((1, model.initial_memory(1)), (2, with_it)):
        runner = Runner(model)
        runner.enter({row: memory})
        alone[row] = runner.step({row: tokens})[row]
    assert float((alone[1] - alone[2]).abs().max()) > 1e-4
    for order in ((1, 2), (2, 1)):
        runner = Runner(model)
        for row in order:
            runner.enter({row: with_it if row == 2 else model.initial_memory(1)})
        logits = runner.step({1: tokens, 2: tokens})
        for row in (1, 2):
            torch.testing.assert_close(logits[row], alone[row], atol=1e-5, rtol=1e-4)
        left = runner.leave([2])[2]
        assert all(torch.equal(left[name], value) for name, value in shared.items())

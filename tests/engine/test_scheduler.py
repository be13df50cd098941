"""Which rows run next and how many tokens each: everyone moves, no share crosses a chunk, speakers do not wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler import Demand, Share, admit, schedule

CHUNK, BUDGET = 64, 256

_DEMANDS = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 10_000)), min_size=1, max_size=40).map(
    lambda rows: [Demand(index, pending, position) for index, (pending, position) in enumerate(rows)]
)


@given(_DEMANDS)
def test_every_row_moves_and_none_crosses_a_chunk(demands: list[Demand]) -> None:
    shares = schedule(demands, chunk=CHUNK, token_budget=BUDGET)
    assert [share.row for share in shares] == [demand.row for demand in demands]
    for share, demand in zip(shares, demands, strict=True):
        assert 1 <= share.count <= demand.pending
        assert demand.position % CHUNK + share.count <= CHUNK


@given(_DEMANDS)
def test_a_mixed_batch_stays_within_the_budget(demands: list[Demand]) -> None:
    mixed = any(d.pending == 1 for d in demands) and any(d.pending > 1 for d in demands)
    shares = schedule(demands, chunk=CHUNK, token_budget=BUDGET)
    if mixed:
        assert len(shares) * max(share.count for share in shares) <= max(BUDGET, len(shares))


@given(_DEMANDS)
def test_readers_among_themselves_read_whole_chunks(demands: list[Demand]) -> None:
    readers = [d for d in demands if d.pending > 1]
    for share, demand in zip(schedule(readers, chunk=CHUNK, token_budget=BUDGET), readers, strict=True):
        assert share.count == min(demand.pending, CHUNK - demand.position % CHUNK)


@given(_DEMANDS)
def test_every_message_is_read_in_the_end(demands: list[Demand]) -> None:
    steps = 0
    while demands:
        shares = {s.row: s.count for s in schedule(demands, chunk=CHUNK, token_budget=BUDGET)}
        left = [Demand(d.row, d.pending - shares[d.row], d.position + shares[d.row]) for d in demands]
        demands = [d for d in left if d.pending]
        steps += 1
    assert steps <= 5001


def test_nobody_waiting_is_no_batch() -> None:
    assert schedule([], chunk=CHUNK, token_budget=BUDGET) == []


def test_the_same_numbers_give_the_same_batch() -> None:
    demands = [Demand(7, 1, 3), Demand(2, 500, 60)]
    assert schedule(demands, chunk=CHUNK, token_budget=BUDGET) == [Share(7, 1), Share(2, 4)]
    assert schedule(demands, chunk=CHUNK, token_budget=BUDGET) == [Share(7, 1), Share(2, 4)]


@given(st.integers(0, 1000), st.integers(0, 64), st.integers(1, 64))
def test_turns_enter_while_there_are_rows(waiting: int, running: int, max_rows: int) -> None:
    entering = admit(waiting, running, max_rows=max_rows)
    assert 0 <= entering <= waiting
    assert entering == 0 or running + entering <= max_rows
    assert entering == waiting or running + entering >= max_rows

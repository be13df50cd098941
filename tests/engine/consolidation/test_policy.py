"""What the worker takes in, in numbers."""

from __future__ import annotations

import pytest

from engine.consolidation.policy import ReplayPolicy


@pytest.mark.parametrize(
    ("num_turns", "num_consolidated", "due"),
    [
        (0, 0, range(0, 0)),
        (3, 0, range(0, 3)),
        (3, 3, range(3, 3)),
        (9, 7, range(7, 9)),
        (9, 2, range(2, 6)),  # a portion's worth, oldest first
        (2, 5, range(2, 2)),  # rolled back behind the mark: nothing is new
    ],
)
def test_new_turns_are_due_oldest_first(num_turns: int, num_consolidated: int, due: range) -> None:
    assert ReplayPolicy(most_turns=4).next_turns(num_turns, num_consolidated) == due


@pytest.mark.parametrize(
    ("tokens", "count"), [([], 0), ([5], 1), ([500], 1), ([40, 40, 40], 2), ([500, 1], 1), ([40, 60], 2)]
)
def test_a_portion_keeps_to_its_tokens_but_takes_at_least_one_turn(tokens: list[int], count: int) -> None:
    assert ReplayPolicy(most_tokens=100).num_within_budget(tokens) == count


def test_surprising_turns_weigh_more_within_bounds() -> None:
    policy = ReplayPolicy(surprise_floor=0.5, surprise_ceiling=2.0)
    weights = policy.weights([0.0, 2.0, 4.0, 2.0])
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] < weights[1] == weights[3] < weights[2]
    # However extreme, no turn is left out and none drowns the others.
    extreme = policy.weights([0.0, *[1.0] * 8, 1000.0])
    assert max(extreme) / min(extreme) == pytest.approx(4.0)


def test_turns_without_surprise_weigh_alike() -> None:
    assert ReplayPolicy().weights([0.0, 0.0]) == [0.5, 0.5]
    assert ReplayPolicy().weights([]) == []


def test_the_rate_grows_with_the_turns_up_to_its_bound() -> None:
    policy = ReplayPolicy(rate_per_turn=2.0, most_rate=10.0)
    assert [policy.rate(count) for count in (1, 3, 50)] == [2.0, 6.0, 10.0]

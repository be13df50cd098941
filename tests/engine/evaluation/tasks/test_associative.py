"""Every query of a row is answered by its pairs; what key has what value in the tests, no training row says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engine.evaluation.examples import Examples
from engine.evaluation.tasks.associative import EASY_STEPS, FIRST_KEY, FIRST_VALUE, AssociativeRecall


def told(tokens: list[int], num_pairs: int) -> dict[int, int]:
    """The pairs a row begins with."""
    return dict(zip(tokens[: 2 * num_pairs : 2], tokens[1 : 2 * num_pairs : 2], strict=True))


def all_told(examples: Examples) -> set[tuple[int, int]]:
    """Every key followed by its value anywhere in the rows."""
    tokens = torch.cat([examples.tokens_BT, examples.target_BT[:, -1:]], 1).tolist()
    pairs = (pair for row in tokens for pair in pairwise(row))
    return {(a, b) for a, b in pairs if FIRST_KEY <= a < FIRST_VALUE <= b}


def num_pairs(tokens: list[int]) -> int:
    """Keys followed by values at a row's beginning."""
    count = 0
    seen: set[int] = set()
    while FIRST_KEY <= tokens[2 * count] < FIRST_VALUE <= tokens[2 * count + 1] and tokens[2 * count] not in seen:
        seen.add(tokens[2 * count])
        count += 1
    return count


def test_conditions_are_numbers_of_pairs_in_rows_of_128_and_256_tokens() -> None:
    found = {condition: examples.tokens_BT.shape for condition, examples in AssociativeRecall(num_tests=3).tests(0)}
    assert found == {
        **{f"pairs {number}": (3, 128) for number in (4, 8, 16, 32)},
        "pairs 64": (3, 256),
    }


def test_every_key_is_asked_once_and_a_reader_of_the_pairs_knows_the_value() -> None:
    for condition, examples in AssociativeRecall(num_tests=4).tests(5):
        number = int(condition.split()[1])
        for tokens, targets, counts in zip(
            examples.tokens_BT.tolist(), examples.target_BT.tolist(), examples.counts_BT.tolist(), strict=True
        ):
            pairs = told(tokens, number)
            asked = [place for place, counted in enumerate(counts) if counted]
            assert sorted(tokens[place] for place in asked) == sorted(pairs), "each key once"
            assert all(targets[place] == pairs[tokens[place]] for place in asked)
            assert min(asked) >= 2 * number, "what is told is no question"


@pytest.mark.parametrize("step", [0, EASY_STEPS - 1, EASY_STEPS, EASY_STEPS + 7])
def test_a_reader_of_the_pairs_knows_what_training_asks(step: int) -> None:
    examples = AssociativeRecall().training(1, step)
    assert 256 <= examples.tokens_BT.numel() <= 512
    for tokens, targets, counts in zip(
        examples.tokens_BT.tolist(), examples.target_BT.tolist(), examples.counts_BT.tolist(), strict=True
    ):
        pairs = told(tokens, num_pairs(tokens))
        asked = [place for place, counted in enumerate(counts) if counted]
        assert set(pairs) <= {tokens[place] for place in asked}
        assert all(targets[place] == pairs[tokens[place]] for place in asked)


def test_training_begins_with_few_pairs_and_comes_to_all() -> None:
    task = AssociativeRecall()
    assert {task.training(0, step).tokens_BT.shape for step in range(0, EASY_STEPS, 9)} == {(16, 32)}
    late = {num_pairs(task.training(0, step).tokens_BT[0].tolist()) for step in range(EASY_STEPS, EASY_STEPS + 60)}
    assert late == {4, 8, 16, 32, 64}


def test_no_pair_of_the_tests_or_of_validation_is_told_in_training() -> None:
    task = AssociativeRecall(num_tests=16)
    steps = [*range(60), *range(EASY_STEPS, EASY_STEPS + 200)]
    trained = set().union(*(all_told(task.training(seed, step)) for seed in (0, 1) for step in steps))
    tested = set().union(*(all_told(examples) for _, examples in task.tests(0)))
    validated = all_told(task.validation(0))
    assert len(trained) > 2000
    assert len(tested) > 500
    assert not trained & tested
    assert not trained & validated
    assert not tested & validated


def test_a_seed_has_its_rows_and_another_has_others() -> None:
    task, again = AssociativeRecall(), AssociativeRecall()
    assert torch.equal(task.training(0, 3).tokens_BT, again.training(0, 3).tokens_BT)
    assert not torch.equal(task.training(0, 3).tokens_BT, task.training(1, 3).tokens_BT)
    assert not torch.equal(task.training(0, 3).tokens_BT, task.training(0, 4).tokens_BT)
    for (_, one), (_, same), (_, other) in zip(task.tests(0), again.tests(0), task.tests(1), strict=True):
        assert torch.equal(one.tokens_BT, same.tokens_BT)
        assert not torch.equal(one.tokens_BT, other.tokens_BT)


def test_tokens_fit_the_vocabulary() -> None:
    task = AssociativeRecall()
    assert all(int(examples.tokens_BT.max()) < task.vocab_size for _, examples in task.tests(0))

"""A reader of the text finds every number it is asked for; what the tests hide was never hidden in training."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.evaluation.tasks.needles import DRILL_STEPS, KINDS, Needles, lexicon

TOLD = re.compile(r"a magic number of (\w+ \w+) is ([0-9a-f ]+) \.")
NOISE = "the grass is green . the sky is blue . the sun is yellow . here we go . there and back again .".split()


@pytest.fixture(scope="module")
def task() -> Needles:
    """Short tests."""
    return Needles(lengths=(256, 1024), longest=2048, num_tests=4)


def texts(examples: Examples) -> list[str]:
    """Rows in words, what was left for the target included."""
    tokens_BT = torch.cat([examples.tokens_BT, examples.target_BT[:, -1:]], 1)
    return [" ".join(lexicon().word(token) for token in row) for row in tokens_BT.tolist()]


def needles(text: str) -> dict[str, list[str]]:
    """What a text tells: values by key, in order."""
    found = defaultdict(list)
    for key, value in TOLD.findall(text):
        found[key].append(value)
    return found


def answers(text: str) -> list[str]:
    """What a reader of the text answers to its questions, in order."""
    told = needles(text)
    return [value for question in text.split("what are the magic numbers")[1:] for value in told[_key(question)]]


def marked(examples: Examples, row: int) -> list[str]:
    """The row's marked answers as words: each unbroken run of marks."""
    found: list[str] = []
    before = False
    pairs = zip(examples.target_BT[row].tolist(), examples.counts_BT[row].tolist(), strict=True)
    for target, counted in pairs:
        if counted:
            word = lexicon().word(target)
            found = [*found[:-1], f"{found[-1]} {word}"] if before else [*found, word]
        before = counted
    return found


def _key(question: str) -> str:
    found = re.match(r" of (\w+ \w+) \?", question)
    assert found is not None
    return found[1]


def test_conditions_are_kinds_and_lengths(task: Needles) -> None:
    found = {condition: tuple(examples.tokens_BT.shape) for condition, examples in task.tests(0)}
    assert list(found)[:4] == ["S-1 256", "S-1 1K", "S-1 2K", "S-2 256"]
    assert len(found) == 3 + 5 * 2
    assert found["S-1 2K"] == (4, 2048)
    assert found["MV 1K"] == (2, 1024)


def test_a_reader_answers_every_question_of_the_tests(task: Needles) -> None:
    kinds = {kind.name: kind for kind in KINDS}
    for condition, examples in task.tests(3):
        kind = kinds[condition.split()[0]]
        for row, text in enumerate(texts(examples)):
            told = needles(text)
            assert len(told) == kind.num_keys
            assert {len(values) for values in told.values()} == {kind.num_values}
            assert marked(examples, row) == answers(text)
            assert len(marked(examples, row)) == kind.num_asked * kind.num_values
            assert all(len(value.split()) == kind.num_pairs for value in marked(examples, row))


def test_a_reader_answers_every_question_of_training_and_validation(task: Needles) -> None:
    rows = [task.training(0, step) for step in range(DRILL_STEPS, DRILL_STEPS + 20)]
    for examples in [*rows, task.validation(0)]:
        for row, text in enumerate(texts(examples)):
            assert answers(text)
            assert marked(examples, row) == answers(text)


def test_a_reader_answers_every_question_of_the_drill(task: Needles) -> None:
    examples = task.training(0, DRILL_STEPS - 1)
    for row, text in enumerate(texts(examples)):
        said = re.findall(r"(\w+ \w+) is (\w\w \w\w \w\w)", text)
        told, asked = dict(said[:2]), said[2:]
        assert len(told) == 2
        assert len(asked) >= 6
        assert all(told[key] == value for key, value in asked)
        assert marked(examples, row)[: len(asked)] == [value for _, value in asked]


def test_s_1_hides_in_five_sentences_and_s_2_in_prose(task: Needles) -> None:
    found = dict(task.tests(0))
    for text in texts(found["S-1 1K"]):
        hay = TOLD.sub("", text.split("what are")[0]).split()
        assert hay == (NOISE * 100)[: len(hay)]
    for text in texts(found["S-2 1K"]):
        assert "the grass is green" not in text
        assert text.split().count("~") > 400


def test_needles_lie_at_every_depth() -> None:
    examples = dict(Needles(lengths=(512,), longest=None, num_tests=40).tests(0))["S-1 512"]
    depths = [text.split().index("magic") / 500 for text in texts(examples)]
    assert min(depths) < 0.2
    assert max(depths) > 0.75
    assert 0.3 < sum(depths) / len(depths) < 0.65


def test_keys_and_values_of_the_tests_are_not_in_training(task: Needles) -> None:
    def all_told(rows: list[Examples]) -> tuple[set[str], set[str]]:
        found = [needles(text) for examples in rows for text in texts(examples)]
        return {key for told in found for key in told}, {
            v for told in found for values in told.values() for v in values
        }

    steps = [*range(60), *range(DRILL_STEPS, DRILL_STEPS + 150)]
    train_keys, train_values = all_told([task.training(0, step) for step in steps])
    test_keys, test_values = all_told([examples for seed in range(5) for _, examples in task.tests(seed)])
    other_keys, other_values = all_told([task.validation(0)])
    assert len(train_keys) > 500
    assert len(test_keys) > 100
    assert not train_keys & test_keys
    assert not train_values & test_values
    assert not train_keys & other_keys
    assert not train_values & other_values


def test_training_is_on_at_most_2048_tokens_and_begins_with_short_rows(task: Needles) -> None:
    easy = {tuple(task.training(0, step).tokens_BT.shape) for step in range(20)}
    later = {tuple(task.training(0, step).tokens_BT.shape) for step in range(DRILL_STEPS, DRILL_STEPS + 80)}
    assert easy == {(8, 63)}
    assert later == {(4, 256), (2, 512), (1, 1024), (1, 2048)}


def test_a_seed_has_its_rows_and_another_has_others(task: Needles) -> None:
    again = Needles(lengths=(256, 1024), longest=2048, num_tests=4)
    assert torch.equal(task.training(0, 500).tokens_BT, again.training(0, 500).tokens_BT)
    assert not torch.equal(task.training(0, 3).tokens_BT, task.training(1, 3).tokens_BT)
    assert torch.equal(task.validation(2).tokens_BT, again.validation(2).tokens_BT)
    for (_, one), (_, same), (_, other) in zip(task.tests(0), again.tests(0), task.tests(1), strict=True):
        assert torch.equal(one.tokens_BT, same.tokens_BT)
        assert not torch.equal(one.tokens_BT, other.tokens_BT)


def test_a_row_too_short_for_its_needles_and_a_folder_without_stories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="at least 256 tokens"):
        Needles(lengths=(128,))
    with pytest.raises(InvalidRequest, match="lacks"):
        Needles(tmp_path)

"""A reader of the facts knows where everybody is; no story of the tests is told in training."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.evaluation.tasks.babi import Babi, Story, draw_story, read_stories
from engine.evaluation.tasks.haystack import part_of

FACT = re.compile(r"(mary|john|daniel|sandra) (?:moved|went|went back|journeyed|travelled) to the (\w+) \.")
FILE = """1 Mary moved to the bathroom.
2 John went to  the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary went back to the kitchen.
5 Where is Mary?\tkitchen\t4
1 Sandra journeyed to the office.
2 Where is Sandra? \toffice\t1
"""


@pytest.fixture(scope="module")
def task() -> Babi:
    """Short tests."""
    return Babi(lengths=(128, 1024), num_tests=6)


def texts(task: Babi, examples: Examples) -> list[str]:
    """Rows in words."""
    return [" ".join(task.lexicon.word(token) for token in row) for row in examples.tokens_BT.tolist()]


def places(text: str) -> dict[str, str]:
    """Where everybody is at a text's end."""
    return dict(FACT.findall(text))


def check(task: Babi, examples: Examples) -> int:
    """Asserts that a reader knows every answer; returns the number of answers."""
    for row, text in enumerate(texts(task, examples)):
        known = places(text)
        asked = [known[person] for person in re.findall(r"where is (\w+) \?", text)]
        marks = examples.counts_BT[row]
        assert [task.lexicon.word(token) for token in examples.target_BT[row][marks].tolist()] == asked
        assert asked
    return int(examples.counts_BT.sum())


def facts(task: Babi, examples: Examples) -> set[str]:
    """The stories of rows."""
    return {" ".join(one[0] for one in re.finditer(FACT, text)) for text in texts(task, examples)}


def test_conditions_are_lengths_and_a_reader_answers_their_one_question(task: Babi) -> None:
    found = dict(task.tests(0))
    assert {name: tuple(examples.tokens_BT.shape) for name, examples in found.items()} == {
        "128": (6, 128),
        "1K": (6, 1024),
    }
    assert [check(task, examples) for examples in found.values()] == [6, 6]


def test_a_reader_answers_what_training_and_validation_ask(task: Babi) -> None:
    assert all(check(task, task.training(0, step)) >= 4 for step in range(12))
    assert check(task, task.validation(0)) == 32
    assert {task.training(0, step).tokens_BT.shape[1] for step in range(60)} == {128, 256, 512, 1024}


def test_facts_lie_all_over_the_text(task: Babi) -> None:
    assert len(facts(task, dict(task.tests(0))["1K"])) == 6
    examples = dict(Babi(lengths=(1024,), num_tests=30).tests(0))["1K"]
    found = [match.start() / len(text) for text in texts(task, examples) for match in FACT.finditer(text)]
    assert min(found) < 0.1
    assert max(found) > 0.9


def test_no_story_of_the_tests_or_of_validation_is_told_in_training(task: Babi) -> None:
    def drawn(part: str, count: int) -> set[tuple[str, ...]]:
        rng = random.Random(1)
        return {draw_story(rng, part, 1).facts for _ in range(count)}  # type: ignore[arg-type]

    trained, validated, tested = drawn("training", 4000), drawn("validation", 800), drawn("tests", 800)
    assert len(tested) > 700
    assert not trained & tested
    assert not trained & validated
    assert not tested & validated
    assert {len(story) for story in tested} == {2, 4, 6, 8, 10}
    rows = set().union(*(facts(task, task.training(0, step)) for step in range(100)))
    assert not rows & set().union(*(facts(task, examples) for _, examples in task.tests(0)))


def test_a_seed_has_its_rows_and_another_has_others(task: Babi) -> None:
    again = Babi(lengths=(128, 1024), num_tests=6)
    assert torch.equal(task.training(0, 3).tokens_BT, again.training(0, 3).tokens_BT)
    assert not torch.equal(task.training(0, 3).tokens_BT, task.training(1, 3).tokens_BT)
    for (_, one), (_, same), (_, other) in zip(task.tests(0), again.tests(0), task.tests(1), strict=True):
        assert torch.equal(one.tokens_BT, same.tokens_BT)
        assert not torch.equal(one.tokens_BT, other.tokens_BT)


def test_the_file_is_read_question_by_question(tmp_path: Path) -> None:
    (tmp_path / "babi_qa1").mkdir()
    (tmp_path / "babi_qa1" / "qa1_single-supporting-fact_test.txt").write_text(FILE)
    first = ("Mary moved to the bathroom.", "John went to the hallway.")
    assert read_stories(tmp_path) == [
        Story(first, (("Mary", "bathroom"),)),
        Story((*first, "Mary went back to the kitchen."), (("Mary", "kitchen"),)),
        Story(("Sandra journeyed to the office.",), (("Sandra", "office"),)),
    ]


def test_with_data_the_tests_are_the_files_questions_that_training_cannot_draw(tmp_path: Path) -> None:
    (tmp_path / "babi_qa1").mkdir()
    (tmp_path / "tinystories").mkdir()
    told = [f"{n} went to the {p}." for n in ("Mary", "John", "Daniel", "Sandra") for p in ("garden", "office")]
    lines = [f"1 {fact}\n2 Where is {fact.split()[0]}?\t{fact.split()[-1][:-1]}\t1" for fact in told]
    (tmp_path / "babi_qa1" / "qa1_single-supporting-fact_test.txt").write_text("\n".join(lines) + "\n")
    stories = [f"A bird saw cloud {n}. It flew on and on." for n in range(60)]
    (tmp_path / "tinystories" / "tinystories_cased_2M.txt").write_text("<|endoftext|>".join([*stories, "A"]))
    allowed = {fact.lower().replace(".", " .") for fact in told if part_of(fact) == "tests"}
    assert 0 < len(allowed) < len(told)
    task = Babi(tmp_path, lengths=(128,), num_tests=len(allowed))
    ((_, examples),) = task.tests(0)
    assert check(task, examples) == len(allowed)
    assert facts(task, examples) == allowed
    assert task.name != Babi(lengths=(128,), num_tests=len(allowed)).name


def test_missing_files_and_short_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="qa1_single-supporting-fact_test"):
        read_stories(tmp_path)
    with pytest.raises(InvalidRequest, match="tinystories"):
        Babi(tmp_path)
    with pytest.raises(InvalidRequest, match="at least 128 tokens"):
        Babi(lengths=(64,))

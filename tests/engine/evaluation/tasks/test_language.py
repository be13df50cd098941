"""Language modelling as a task: what is held out, which tokens and bytes count, and how passages become rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import InvalidRequest
from engine.evaluation.tasks.language import DIALOGUES, FILES, STORIES, LanguagePlan, LanguageTask, Passage
from engine.tokenizer import ASSISTANT, END, NUM_SPECIAL, PAD, USER
from tests.engine.evaluation.tasks.corpora import write_corpora
from tests.tiny import tiny_tokenizer

PLAN = LanguagePlan(num_rows=6, num_tokens=48, stream_tokens=96, wikitext_tokens=0)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> LanguageTask:
    return LanguageTask(write_corpora(tmp_path_factory.mktemp("data")), tiny_tokenizer(), PLAN)


def _texts(passage: Passage) -> list[str]:
    """A passage's text between special tokens."""
    parts: list[list[int]] = [[]]
    for token in passage.ids:
        if token < NUM_SPECIAL:
            parts.append([])
        else:
            parts[-1].append(token)
    return [tiny_tokenizer().decode(part) for part in parts if part]


def test_what_is_measured_is_in_no_training_step(task: LanguageTask) -> None:
    decode = tiny_tokenizer().decode
    trained = " ".join(decode(row.tolist()) for step in range(150) for row in task.training(0, step).tokens_BT)
    validated = " ".join(decode(row.tolist()) for row in task.validation(0).tokens_BT)
    for condition in (DIALOGUES, STORIES):
        texts = _texts(task.passages[condition])
        assert texts
        # Every document has its number, and with it the text of a held-out one is nowhere else.
        assert not any(text.strip() in trained or text.strip() in validated for text in texts)
    assert "Do you like film" in trained
    assert "Once a fox found" in trained
    assert "A king had" in trained
    assert "lobster" not in trained
    assert "cut o" not in trained


def test_validation_is_no_training_either(task: LanguageTask) -> None:
    decode = tiny_tokenizer().decode
    trained = {decode(row.tolist()) for step in range(150) for row in task.training(0, step).tokens_BT}
    validated = [decode(row.tolist()) for row in task.validation(0).tokens_BT]
    assert not trained & set(validated)
    numbers = {word for text in validated for word in text.split() if word.isdigit()}
    assert len(numbers) < 40, "a twentieth of the documents, not all of them"


def test_a_step_of_a_seed_is_always_the_same_and_like_no_other(task: LanguageTask) -> None:
    first, again = task.training(1, 2), task.training(1, 2)
    assert torch.equal(first.tokens_BT, again.tokens_BT)
    assert first.tokens_BT.shape == (6, 48)
    for other in (task.training(1, 3), task.training(2, 2)):
        assert not torch.equal(first.tokens_BT, other.tokens_BT)


def test_text_counts_and_special_tokens_do_not(task: LanguageTask) -> None:
    examples = task.training(0, 0)
    assert torch.equal(examples.counts_BT, examples.target_BT >= NUM_SPECIAL)
    assert {USER, ASSISTANT, END} & set(examples.target_BT.flatten().tolist())


def test_bytes_are_those_of_the_lines_and_of_the_space_before_each(task: LanguageTask) -> None:
    lines = ["= Lobster =", "The lobster is a <unk> of the sea .", "= = Food = =", "It eats crabs , and naïve fish ."]
    lines += ["= Otter =", "The otter swims ."]
    passage = task.passages["wikitext valid"]
    assert passage.num_bytes == sum(1 + len(line.encode()) + 1 for line in lines)
    assert _texts(passage) == ["\n ".join(lines[:4]) + "\n", "\n ".join(lines[4:]) + "\n"], "an article is a document"
    assert sum(passage.counts) == sum(len(tiny_tokenizer().encode(line + "\n")) for line in lines)
    # A turn's own: the text and a space.
    turns = _texts(task.passages[DIALOGUES])
    assert task.passages[DIALOGUES].num_bytes == sum(1 + len(turn.encode()) for turn in turns)


@pytest.mark.parametrize("num_tokens", [1, 7, 48, 1000])
def test_every_token_that_counts_is_a_target_once(task: LanguageTask, num_tokens: int) -> None:
    passage = task.passages["wikitext valid"]
    rows = passage.rows(num_tokens)
    counted = rows.target_BT[rows.counts_BT].tolist()
    assert counted == [token for token, counts in zip(passage.ids, passage.counts, strict=True) if counts]
    assert rows.tokens_BT.shape[1] == num_tokens
    assert rows.tokens_BT.flatten()[: len(passage.ids) - 1].tolist() == passage.ids[:-1]
    assert set(rows.tokens_BT.flatten()[len(passage.ids) :].tolist()) <= {PAD}


def test_conditions_and_the_stream_s_longer_rows(task: LanguageTask) -> None:
    tests = dict(task.tests(0))
    assert list(tests) == ["wikitext valid", "wikitext test", "dialogues", "stories", "wikitext stream"]
    assert tests["wikitext test"].tokens_BT.shape[1] == 48
    assert tests["wikitext stream"].tokens_BT.shape[1] == 96
    assert tests["wikitext stream"].counts_BT.sum() == tests["wikitext test"].counts_BT.sum()


def test_a_bound_takes_whole_articles_from_the_beginning(task: LanguageTask, tmp_path: Path) -> None:
    few = LanguageTask(write_corpora(tmp_path), tiny_tokenizer(), LanguagePlan(wikitext_tokens=1, held_out_tokens=1))
    (article,) = _texts(few.passages["wikitext valid"])
    assert article.startswith("= Lobster =")
    assert "otter" not in article
    assert 0 < few.passages[STORIES].num_bytes < task.passages[STORIES].num_bytes


def test_a_folder_that_lacks_files_is_named_with_them(tmp_path: Path) -> None:
    write_corpora(tmp_path)
    for name in ("wikitext test", DIALOGUES):
        (tmp_path / FILES[name]).unlink()
    with pytest.raises(InvalidRequest, match=r"lacks self_dialogue/self_dialogue.jsonl.gz, wikitext2/test.txt"):
        LanguageTask(tmp_path, tiny_tokenizer())

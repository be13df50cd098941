"""Translation: what is read before a question, languages invented for a row, and nothing of the tests in training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.evaluation.tasks.translation import (
    Book,
    InventedLanguages,
    PagePlan,
    Sentences,
    invent,
    page,
    question,
    read_kalamang,
    spell,
    word_for_word,
)
from engine.tokenizer import ASSISTANT, END, USER
from tests.engine.evaluation.tasks.samples import SENTENCES, write_kalamang
from tests.tiny import tiny_tokenizer

PLAN = PagePlan(words=4, sentences=1, row_tokens=220, answer_tokens=24)
ENGLISH = ["The dog likes the river.", "Rex leaves late.", "What is the name of the owl?", "The fox is late."]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return read_kalamang(write_kalamang(tmp_path / "data"))


def texts_of(examples: Examples) -> list[str]:
    return [tiny_tokenizer().decode(row) for row in examples.tokens_BT.tolist()]


def test_the_word_list_is_read_plain_and_a_test_sentence_of_training_is_dropped(book: Book) -> None:
    assert book.words == [("kara", "they"), ("at", "[object]"), ("per", "water")]
    assert book.sentences == SENTENCES
    assert {there for there, _ in book.tests} == {"Kara perat na.", "Mu sor."}
    assert book.facing("en-kgv").words[0] == ("they", "kara")
    assert book.facing("kgv-en") == book


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"wordlist\.tsv, parallel_train\.tsv, parallel_test\.tsv"):
        read_kalamang(None)
    data = write_kalamang(tmp_path / "data")
    (data / "kalamang" / "parallel_test.tsv").unlink()
    with pytest.raises(InvalidRequest, match=r": parallel_test\.tsv$"):
        read_kalamang(data)


def test_a_page_has_the_entries_of_the_words_and_the_likest_sentence(book: Book) -> None:
    assert page(book, "Kara perat na.", PLAN) == [("kara", "they"), ("per", "water"), ("Ma kara.", "He sees them.")]
    there = book.facing("en-kgv")
    assert page(there, "They dig for water.", PLAN)[-1] == ("I dig for water.", "An per ruo.")
    assert page(there, "They dig for water.", PLAN)[:2] == [("they", "kara"), ("water", "per")]
    assert page(book, "Ma kara.", PLAN)[-1][0] != "Ma kara.", "the sentence itself would tell its translation"


def test_a_question_ends_where_the_translation_begins_and_fits(book: Book) -> None:
    tokenizer, source = tiny_tokenizer(), "Kara perat na."
    asked = [USER, *tokenizer.encode(source), ASSISTANT]
    assert question(None, source, PLAN, tokenizer) == asked
    assert question(book, source, PLAN, tokenizer) == [*spell(page(book, source, PLAN), tokenizer), *asked]
    short = question(book, source, PagePlan(4, 1, len(asked) + 24 + 5, 24), tokenizer)
    assert short == question(book, source, PLAN, tokenizer)[-len(asked) - 5 :]


def test_word_for_word_leaves_what_it_does_not_know(book: Book) -> None:
    assert word_for_word(book, "Kara perat na.") == "they water na"


def test_an_invented_language_is_told_by_its_word_list() -> None:
    book = invent(random.Random(3), ENGLISH[0], [ENGLISH[2]])
    ((source, target),) = book.tests
    assert target == ENGLISH[0]
    meaning = dict(book.words)
    assert set(meaning.values()) == {"the", "dog", "likes", "river"}
    spoken = [word.lower().strip(".") for word in source.split()]
    known = [english for word in spoken for there, english in book.words if word.startswith(there)]
    assert known in (["the", "dog", "likes", "the", "river"], ["river", "the", "likes", "dog", "the"])
    other = invent(random.Random(4), ENGLISH[0], [ENGLISH[2]])
    assert not set(meaning) & set(dict(other.words)), "another row, another language"


def test_only_the_translation_counts_and_both_directions_are_learned() -> None:
    task = InventedLanguages(ENGLISH * 10, PLAN, tiny_tokenizer(), rows=4)
    examples = task.training(0, 0)
    answers = [
        tiny_tokenizer().decode(target[counts].tolist())
        for target, counts in zip(examples.target_BT, examples.counts_BT, strict=True)
    ]
    assert answers[0] in {one[: len(answers[0])] for one in ENGLISH}
    assert answers[1] not in ENGLISH
    assert examples.tokens_BT.shape[1] <= PLAN.row_tokens
    assert task.training(0, 0).tokens_BT.equal(examples.tokens_BT)
    assert not task.training(0, 1).tokens_BT.equal(examples.tokens_BT)
    for target, counts in zip(examples.target_BT, examples.counts_BT, strict=True):
        assert int(target[counts][-1]) == END


def test_validation_sentences_are_never_trained_on() -> None:
    english = [f"The {number} is late." for number in range(100, 140)]
    task = InventedLanguages(english, PLAN, tiny_tokenizer(), rows=4)
    kept = {one for one in english if any(one in text for text in texts_of(task.validation(0)))}
    assert kept
    assert kept <= set(english[::10])
    trained = " ".join(text for step in range(30) for text in texts_of(task.training(0, step)))
    assert not any(one in trained for one in english[::10])
    pairs = [(f"{number} kara", f"They are {number}.") for number in range(100, 140)]
    tuning = Sentences(pairs, PLAN, tiny_tokenizer(), rows=8)
    trained = " ".join(text for step in range(30) for text in texts_of(tuning.training(0, step)))
    assert not any(there in trained or here in trained for there, here in pairs[::10])
    assert all(there in trained for there, _ in pairs[1:10])

"""Words as tokens, prose split between training and tests, and things hidden in order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.evaluation.tasks.haystack import NUM_BUCKETS, Lexicon, Prose, draw_sentences, hide, part_of, short_length


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """A data folder of small stories; the last one is cut."""
    folder = tmp_path / "tinystories"
    folder.mkdir()
    texts = [f"Once there was a cat named {n}. It sat on mat {n}! All was well." for n in range(40)]
    (folder / "tinystories_cased_2M.txt").write_text("\n<|endoftext|>\n".join([*texts, "A dog r"]))
    return tmp_path


def test_own_words_have_a_token_each_and_others_share() -> None:
    lexicon = Lexicon(["cat", "mat", "cat", "."])
    assert lexicon.encode("Cat mat.") == [0, 1, 2]
    others = lexicon.encode(" ".join(f"word{number}" for number in range(2000)))
    assert min(others) >= 3
    assert max(others) < lexicon.size == 3 + NUM_BUCKETS
    assert len(set(others)) > NUM_BUCKETS * 0.9
    assert lexicon.encode("zebra") == lexicon.encode("ZEBRA")
    assert [lexicon.word(token) for token in lexicon.encode("the cat")] == ["~", "cat"]


def test_most_texts_are_trainings_and_every_part_has_some() -> None:
    parts = [part_of(str(number)) for number in range(2000)]
    shares = {part: parts.count(part) / len(parts) for part in ("training", "validation", "tests")}
    assert shares == pytest.approx({"training": 0.7, "validation": 0.1, "tests": 0.2}, abs=0.04)


def test_no_sentence_of_the_small_talk_is_in_training_and_in_the_tests() -> None:
    prose = Prose(None)
    trained = {sentence.lower() for passage in prose.training for sentence in passage}
    tested = {sentence.lower() for passage in prose.tests for sentence in passage}
    assert len(trained) > 1500
    assert len(tested) > 300
    assert not trained & tested


def test_stories_are_passages_in_order_and_the_cut_one_is_left_out(stories: Path) -> None:
    prose = Prose(stories)
    assert all(passage[0].startswith("Once") and passage[-1] == "All was well." for passage in prose.training)
    assert prose.tests
    assert all(len(passage) == 2 for passage in prose.tests), "a sentence of training's is not read in the tests"
    assert not any("dog" in sentence for passage in [*prose.training, *prose.tests] for sentence in passage)
    lexicon = Lexicon(["cat"])
    assert prose.encoded(lexicon, "tests") != prose.encoded(lexicon, "training") == prose.encoded(lexicon, "validation")


def test_a_folder_without_stories_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="tinystories_cased_2M"):
        Prose(tmp_path)


def test_sentences_come_to_the_length_asked_for() -> None:
    passages = [[[1, 2, 3], [4, 5]], [[6, 7, 8, 9]]]
    for length in (1, 2, 7, 50):
        sentences = draw_sentences(random.Random(0), passages, length)
        assert sum(map(len, sentences)) == length


def test_what_is_hidden_stands_whole_in_order_anywhere_between_sentences() -> None:
    sentences, hidden = [[1, 1], [2, 2], [3, 3]], [[7, 8], [9]]
    firsts = set()
    for seed in range(200):
        tokens = hide(random.Random(seed), sentences, hidden)
        assert [token for token in tokens if token < 7] == [1, 1, 2, 2, 3, 3]
        at = tokens.index(7)
        assert tokens[at + 1] == 8
        assert tokens.index(9) > at
        assert at % 2 == 0
        firsts.add(at)
    assert firsts == {0, 2, 4, 6}


def test_lengths_are_named_shortly() -> None:
    assert [short_length(number) for number in (500, 512, 1024, 16384)] == ["500", "512", "1K", "16K"]

"""No sentence of `paraphrases.toml` is one that training says, nor one of `everyday.toml`; the file is whole."""

from __future__ import annotations

import pytest

from engine.evaluation.telling import load_everyday, load_paraphrases
from engine.training.relations import load_small_talk
from engine.training.values import KINDS
from tests.engine.evaluation.wordings import said_by_training

SENTENCES = [text for one in load_paraphrases() for text in (*one.tell, *one.ask)]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_training_does_not_say_it(sentence: str) -> None:
    assert said_by_training(sentence) is None
    assert sentence not in {message for message, _ in load_small_talk().pairs}


def test_it_is_another_set_than_everyday() -> None:
    everyday = {text for one in load_everyday() for text in (one.tell, one.ask)}
    assert everyday.isdisjoint(SENTENCES)


def test_the_file_is_whole() -> None:
    every = load_paraphrases()
    assert len({one.name for one in every}) == len(every) == 60
    assert len(set(SENTENCES)) == len(SENTENCES) == 6 * len(every)
    assert len({one.value for one in every} & set(KINDS)) == len({one.value for one in every}) == 10
    for one in every:
        assert len(one.tell) == len(one.ask) == 3
        assert all(tell.count("{v}") == 1 and "{" not in tell.replace("{v}", "") for tell in one.tell)
        assert all("{" not in ask and ask.endswith("?") for ask in one.ask)

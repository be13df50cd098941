"""No sentence of `everyday.toml` is one that training says: what it measures was never practised."""

from __future__ import annotations

import random

import pytest

from engine.evaluation.telling import Everyday, load_everyday
from engine.training.dialogue import Dialogue
from engine.training.relations import load_small_talk
from engine.training.values import is_held_out
from tests.engine.evaluation.wordings import said_by_training
from tests.engine.training.samples import talk


@pytest.mark.parametrize("one", load_everyday(), ids=lambda one: one.tell)
def test_training_says_neither_the_sentence_nor_the_question(one: Everyday) -> None:
    assert said_by_training(one.tell) is None
    assert said_by_training(one.ask) is None
    assert one.ask not in {message for message, _ in load_small_talk().pairs}


@pytest.mark.parametrize(
    "sentence",
    [
        "My dog is called {v}.",
        "My name is {v}",
        "By the way, my name is {v}. Please remember that.",
        "what is my name",
        "Quick question: what is my name? I forgot.",
        "My aunt's old kettle is called {v}.",
        "What do I play?",
        "What does my aunt play?",
        "I have an old robot called {v}.",
        "I work at a {v}.",
        "Which instrument does my aunt play?",
        "My aunt Ada is afraid of {v}.",
    ],
)
def test_what_training_says_would_be_found(sentence: str) -> None:
    assert said_by_training(sentence)


def test_whatever_a_training_dialogue_says_would_be_found() -> None:
    missed, num_said = [], 0
    for seed in range(60):
        dialogue = Dialogue(random.Random(seed), talk(), open_share=0.6)
        line = dialogue.tell(echo=0.0)
        fact = dialogue.facts[0]
        owners_are_kin = "'s " not in fact.relation.name or "my " in fact.relation.name
        if len(dialogue.facts) > 1 or not owners_are_kin or is_held_out(fact.value):
            continue
        told, asked = line.message.replace(fact.value, "{v}"), dialogue.ask(fact).message
        num_said += 1
        missed += [text for text in (told, asked) if not said_by_training(text)]
    assert num_said > 30
    # Invented nouns and friends' names have no pattern.
    assert len(missed) < 0.3 * 2 * num_said, missed

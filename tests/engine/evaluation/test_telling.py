"""What a recall run tells, source by source: evaluation's values always, and its wordings and words where named."""

from __future__ import annotations

import random

import pytest

from engine.evaluation.telling import SOURCES, Telling, load_everyday, tellings
from engine.training.open_relations import is_held_out_word
from engine.training.relations import load_relations
from engine.training.talk import Talk
from engine.training.values import KINDS, is_held_out

FIXED = {relation.name: relation for relation in load_relations()}
TALK = Talk(None)


def told(source: str, *, held_out_phrases: bool = False) -> list[Telling]:
    """Five facts of each of sixty sessions."""
    return [
        one
        for seed in range(60)
        for one in tellings(random.Random(seed), 5, source, held_out_phrases=held_out_phrases, talk=TALK)
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_a_session_tells_different_things_with_values_never_in_training(source: str) -> None:
    for seed in range(30):
        facts = tellings(random.Random(seed), 5, source, held_out_phrases=False, talk=TALK)
        assert len({fact.relation for fact in facts}) == len(facts) == 5
        assert facts == tellings(random.Random(seed), 5, source, held_out_phrases=False, talk=TALK)
        for fact in facts:
            assert is_held_out(fact.value)
            assert fact.value in fact.sentence
            assert fact.questions
            assert not any("{" in text for text in (fact.sentence, *fact.questions))


@pytest.mark.parametrize(("source", "held_out"), [("training", False), ("held-out", True)])
@pytest.mark.parametrize("held_out_phrases", [False, True])
def test_fixed_relations_are_of_the_source_in_the_wordings_asked_for(
    source: str, held_out: bool, held_out_phrases: bool
) -> None:
    facts = told(source, held_out_phrases=held_out_phrases)
    assert len({fact.relation for fact in facts}) > 15
    for fact in facts:
        relation = FIXED[fact.relation]
        assert relation.held_out == held_out
        if relation.entity is None:
            tells = relation.phrases("tell", held_out=held_out_phrases)
            assert fact.sentence in {tell.replace("{v}", fact.value) for tell in tells}
            assert fact.questions == relation.phrases("ask", held_out=held_out_phrases)


def test_open_relations_are_of_words_that_training_never_saw() -> None:
    facts = told("open")
    assert not any(fact.relation in FIXED for fact in facts)
    last = [fact.relation.split()[-1] for fact in facts if fact.relation.startswith("location")]
    assert len(last) > 10
    # The last word of a noun of several is not what was hashed.
    single = [word for word in last if word not in ("bag", "set", "rod", "kit", "key", "album", "machine", "present")]
    assert sum(map(is_held_out_word, single)) > 0.8 * len(single)


def test_everyday_facts_are_the_files_sentences_with_their_own_questions() -> None:
    pairs = {(one.name, one.tell, one.ask) for one in load_everyday()}
    seen = set()
    for fact in told("everyday"):
        found = (fact.relation, fact.sentence.replace(fact.value, "{v}"), *fact.questions)
        assert found in pairs
        seen.add(found)
    assert len(seen) > 0.9 * len(pairs)


def test_the_everyday_file_is_whole() -> None:
    every = load_everyday()
    assert len(every) >= 50
    assert len({one.tell for one in every}) == len({one.ask for one in every}) == len(every)
    for one in every:
        assert one.value in KINDS
        assert one.tell.count("{v}") == 1
        assert "{" not in one.tell.replace("{v}", "")
        assert "{" not in one.ask
        assert one.ask.endswith("?")

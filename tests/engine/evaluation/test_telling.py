"""What a recall run tells, source by source: evaluation's values always, and its wordings and words where named."""

from __future__ import annotations

import random

import pytest

from engine.errors import InvalidRequest
from engine.evaluation.telling import SOURCES, Telling, changed, load_everyday, load_paraphrases, tellings, untold
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
    last = [fact.relation.split()[-1] for fact in facts if fact.relation.startswith(("location", "left"))]
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


def test_paraphrases_are_the_files_sentences_with_every_question_of_their_relation() -> None:
    relations = {one.name: one for one in load_paraphrases()}
    seen = set()
    for fact in told("paraphrases"):
        relation = relations[fact.relation]
        sentence = fact.sentence.replace(fact.value, "{v}")
        assert sentence in relation.tell
        assert fact.questions == relation.ask
        seen.add(sentence)
    assert len(seen) > 0.7 * sum(len(one.tell) for one in relations.values())


@pytest.mark.parametrize("source", SOURCES)
def test_a_changed_fact_is_the_same_one_with_another_value(source: str) -> None:
    rng = random.Random(3)
    for fact in told(source)[:40]:
        later = changed(rng, fact)
        assert (later.topic, later.questions) == (fact.topic, fact.questions)
        assert is_held_out(later.value)
        assert later.value in later.sentence
        assert later.sentence != fact.sentence
        assert "{" not in later.sentence
        assert later.value.lower() not in fact.value.lower()
        assert fact.value.lower() not in later.value.lower()
        if source in ("everyday", "paraphrases"):
            assert later.sentence.endswith(fact.sentence.replace(fact.value, later.value))


@pytest.mark.parametrize("source", ["training", "held-out"])
def test_relations_change_in_their_own_words(source: str) -> None:
    rng = random.Random(4)
    for fact in told(source)[:40]:
        later = changed(rng, fact)
        relation = FIXED[fact.relation]
        if relation.entity is None:
            assert later.sentence in {change.replace("{v}", later.value) for change in relation.change}


def test_what_was_not_told_is_of_another_topic() -> None:
    facts = tellings(random.Random(0), 30, "training", held_out_phrases=False, talk=TALK)
    first, others = facts[:10], facts[5:]
    never = untold(first, others, 8)
    assert {one.topic for one in never}.isdisjoint(one.topic for one in first)
    assert never == [one for one in others if one in never], "in their order"
    with pytest.raises(ValueError, match="topics that were not told"):
        untold(first, first, 1)


def test_more_facts_than_a_source_has_are_refused() -> None:
    names = {one.name for one in load_everyday()}
    every = tellings(random.Random(0), len(names), "everyday", held_out_phrases=False, talk=TALK)
    assert {one.relation for one in every} == names
    with pytest.raises(InvalidRequest, match=f"'everyday' has {len(names)} different facts"):
        tellings(random.Random(0), len(names) + 1, "everyday", held_out_phrases=False, talk=TALK)


def test_relations_of_one_topic_share_it() -> None:
    """A question would fit both, so neither is unknown where the other was told."""
    topics = {fact.relation: fact.topic for fact in told("training")}
    pairs = [
        (topics[one.name], topics[one.same_as])
        for one in FIXED.values()
        if one.entity is None and one.name in topics and one.same_as in topics
    ]
    assert pairs
    assert all(topic == other for topic, other in pairs)


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

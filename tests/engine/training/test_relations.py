"""The fixed relations: enough of them and of their wordings, a fifth held out, and no template with a wrong gap."""

from __future__ import annotations

import random
import re

import pytest

from engine.training.dialogue import Dialogue
from engine.training.relations import NUM_HELD_OUT_PHRASES, load_relations, load_small_talk
from engine.training.talk import Talk
from engine.training.values import KINDS

RELATIONS = load_relations()
PARTS = ("tell", "ask", "answer", "ack", "change")


def gaps(template: str) -> list[str]:
    return re.findall(r"\{[^}]*\}|[{}]", template)


def plain(template: str) -> str:
    return template.lower().rstrip(".?!")


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(RELATIONS) >= 60
    assert len({relation.name for relation in RELATIONS}) == len(RELATIONS)


def test_some_topics_are_held_out_and_no_training_relation_is_about_one() -> None:
    held_out = {relation.topic for relation in RELATIONS if relation.held_out}
    assert len(held_out) >= 20
    assert not held_out & {relation.topic for relation in RELATIONS if not relation.held_out}


def test_a_relation_can_be_told_and_asked_in_many_ways() -> None:
    for relation in RELATIONS:
        assert len(set(relation.tell)) >= 8, relation.name
        assert len(set(relation.ask)) >= 6, relation.name
        assert relation.answer, relation.name
        assert relation.change, relation.name
        assert relation.value in KINDS, relation.name
        assert relation.entity is None or relation.entity in KINDS, relation.name


@pytest.mark.parametrize("part", PARTS)
def test_templates_have_the_gaps_they_need(part: str) -> None:
    for relation in RELATIONS:
        allowed = {"{v}", "{e}"} if relation.entity else {"{v}"}
        for template in getattr(relation, part):
            found = gaps(template)
            assert set(found) <= allowed, template
            assert found.count("{v}") <= 1, template
            if part in ("tell", "answer", "change"):
                assert "{v}" in found, template
            if part == "ask":
                assert "{v}" not in found, template
            if part in ("tell", "ask", "change"):
                assert ("{e}" in found) == (relation.entity is not None), template


def test_every_relation_has_an_echo_that_says_the_value() -> None:
    assert [relation.name for relation in RELATIONS if not any("{v}" in template for template in relation.ack)] == []


@pytest.mark.parametrize("kind", ["tell", "ask"])
def test_the_last_phrases_are_for_evaluation_alone(kind: str) -> None:
    for relation in RELATIONS:
        every: tuple[str, ...] = getattr(relation, kind)
        training = relation.phrases(kind, held_out=False)
        evaluation = relation.phrases(kind, held_out=True)
        assert evaluation == every[-NUM_HELD_OUT_PHRASES:]
        assert training + evaluation == every
        assert len(evaluation) == 2
        assert not set(map(plain, training)) & set(map(plain, evaluation)), relation.name


def test_no_held_out_wording_is_another_relations_training_wording() -> None:
    training = {
        plain(template)
        for relation in RELATIONS
        if not relation.held_out
        for template in (
            *relation.phrases("tell", held_out=False),
            *relation.phrases("ask", held_out=False),
            *relation.change,
        )
    }
    evaluation = {
        plain(template)
        for relation in RELATIONS
        for kind in ("tell", "ask")
        for template in (getattr(relation, kind) if relation.held_out else relation.phrases(kind, held_out=True))
    }
    assert training
    assert not training & evaluation


def test_dialogues_draw_only_their_sides_phrases() -> None:
    relation = RELATIONS[0]
    asked: dict[bool, set[str]] = {False: set(), True: set()}
    for side, found in asked.items():
        dialogue = Dialogue(random.Random(1), Talk(None), held_out_phrases=side)
        dialogue.relations = [relation]
        dialogue.tell(0.0)
        found.update(plain(dialogue.ask(dialogue.facts[0]).message) for _ in range(200))
    assert asked[True] == set(map(plain, relation.ask[-2:]))
    assert asked[False] == set(map(plain, relation.ask[:-2]))


def test_stock_phrases_have_their_gaps() -> None:
    talk = load_small_talk()
    assert len(talk.pairs) > 100
    assert all("{v}" in template for template in talk.generic_answer)
    for template in (*talk.unknown, *talk.generic_ack, *(text for user, said in talk.pairs for text in (user, *said))):
        assert not gaps(template), template

"""Open relations: words of evaluation never in training, sentences filled to the last gap, and grammar that agrees."""

from __future__ import annotations

import random
import re
from functools import cache

import pytest

from engine.training.open_relations import Family, OpenRelations, is_held_out_word, load_open_words
from engine.training.relations import NUM_HELD_OUT_PHRASES, Relation
from engine.training.values import KINDS, is_held_out

WORDS = load_open_words()
FAMILIES = {family.name: family for family in WORDS.families}
# Verbs that stand alone in a family, or with none of evaluation's: shared.
SHARED = {
    verb.base
    for family in WORDS.families
    for held_out in (False, True)
    if family.verbs and not any(is_held_out_word(verb.base) == held_out for verb in family.verbs)
    for verb in family.verbs
} | {"work"}
ADVERBS = "now often really still usually always".split()


@cache
def drawn(held_out: bool) -> tuple[Relation, ...]:
    """A few relations of each of many dialogues."""
    found = []
    for seed in range(200):
        relations = OpenRelations(random.Random(seed), held_out=held_out)
        found += [relations.draw() for _ in range(12)]
    return tuple(found)


def words_of(family: Family) -> list[str]:
    return [*family.nouns, *(noun for noun, _ in family.attributes), *(verb.base for verb in family.verbs)]


def parsed(relation: Relation) -> tuple[Family, str]:
    """Its family, and whose thing it is or who does it."""
    name, _, about = relation.name.partition(": ")
    return FAMILIES[name], about


def word_of(relation: Relation) -> str | None:
    """The noun, attribute or verb that it was made of; None where it was invented."""
    family, about = parsed(relation)
    return max((word for word in words_of(family) if about.endswith(" " + word)), key=len, default=None)


def has(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text in whole words, at a sentence's start perhaps with a capital."""
    for start in (phrase, phrase[0].upper() + phrase[1:]):
        at = text.find(start)
        while at >= 0:
            end = at + len(start)
            if not text[at - 1 : at].isalnum() and not text[end : end + 1].isalnum():
                return True
            at = text.find(start, at + 1)
    return False


def says(text: str, who: str, verb: str) -> bool:
    """Whether the text says that they do it, perhaps with one of the families' adverbs."""
    return any(has(text, f"{who} {adverb}{verb}") for adverb in ("", *(f"{adverb} " for adverb in ADVERBS)))


def test_a_fifth_of_all_words_is_held_out() -> None:
    words = {word for family in WORDS.families for word in words_of(family)}
    assert len(words) > 400
    assert 0.15 < sum(map(is_held_out_word, words)) / len(words) < 0.25


@pytest.mark.parametrize("held_out", [False, True])
def test_words_come_from_the_side_asked_for(held_out: bool) -> None:
    seen, num_invented = set(), 0
    for relation in drawn(held_out):
        word = word_of(relation)
        if word is None:
            num_invented += 1
            invented = parsed(relation)[1].split()[-1]
            assert is_held_out(invented) == held_out, relation.name
        elif word not in SHARED:
            assert is_held_out_word(word) == held_out, relation.name
            seen.add(word)
    assert len(seen) > 60
    assert 0.05 < num_invented / len(drawn(held_out)) < 0.25


@pytest.mark.parametrize("held_out", [False, True])
def test_every_family_is_drawn_and_filled(held_out: bool) -> None:
    assert {parsed(relation)[0].name for relation in drawn(held_out)} == set(FAMILIES)
    for relation in drawn(held_out):
        assert relation.value in KINDS
        assert relation.entity is None
        for part in ("tell", "ask", "answer", "ack", "change"):
            for sentence in getattr(relation, part):
                gaps = re.findall(r"\{[^}]*\}|[{}]", sentence)
                assert len(gaps) <= 1, sentence
                assert set(gaps) <= {"{v}"}, sentence
                assert part not in ("tell", "answer", "change") or gaps, sentence
                assert part != "ask" or not gaps, sentence
                assert not re.search(r"\ba [aeiou]", sentence), sentence
        assert any("{v}" in sentence for sentence in relation.ack)


def test_verbs_agree_with_who_does_it() -> None:
    verbs = {(family.name, verb.base): verb for family in WORDS.families for verb in family.verbs}
    speakers = set()
    for relation in drawn(held_out=False):
        family, about = parsed(relation)
        if not family.verbs:
            continue
        base = max((v.base for v in family.verbs if about.endswith(f" {v.base}")), key=len)
        verb, who = verbs[family.name, base], about.removesuffix(f" {base}")
        me = who == "I"
        speakers.add("I" if me else "kin" if who.startswith("my ") else "a name")
        wrong_do, wrong_have, wrong_be = ("does", "has", "is") if me else ("do", "have", "am")
        right, wrong = (verb.base, verb.third) if me else (verb.third, verb.base)
        for sentence in (*relation.ask, *relation.tell, *relation.change):
            assert not any(has(sentence, f"{wrong_one} {who}") for wrong_one in (wrong_do, wrong_be)), sentence
            assert not has(sentence, f"{who} {wrong_be}"), sentence
            assert me or not has(sentence, "I'm"), sentence
            assert has(sentence, who) or (me and re.search(r"\b(I'm|my)\b", sentence, re.IGNORECASE)), sentence
        for sentence in (*relation.tell, *relation.change):
            assert not has(sentence, f"{who} {wrong_have}"), sentence
            assert right == wrong or f"will {wrong}" in sentence or not says(sentence, who, wrong), sentence
        you = "you" if me else who.replace("my ", "your ")
        for sentence in (*relation.answer, *relation.ack):
            assert not has(sentence, "my"), sentence
            assert right == wrong or not says(sentence, you, wrong), sentence
        assert any(has(sentence, you) or has(sentence, "you're") for sentence in relation.answer), relation.answer
    assert speakers == {"I", "kin", "a name"}


def test_kin_with_a_name_is_asked_about_by_either() -> None:
    asked_by = set()
    for seed in range(60):
        relations = OpenRelations(random.Random(seed), held_out=False)
        for relation in (relations.draw() for _ in range(60)):
            named = re.match(r"(My \w+) ([A-Z]\w*(?: [A-Z]\w*)?) ", relation.tell[0])
            if parsed(relation)[0].verbs and named:
                kin, name = named[1].replace("My", "my"), named[2]
                assert f": {kin} " in relation.topic
                asked_by |= {one for one in (kin, name) if f" {one} " in relation.name}
                assert any(f" {one} " in relation.name for one in (kin, name)), relation
    assert {one.startswith("my ") for one in asked_by} == {True, False}


def test_one_question_has_one_topic() -> None:
    """Where a question fits two facts, they are about the same: only one of them is told in a dialogue."""
    for seed in range(40):
        relations = OpenRelations(random.Random(seed), held_out=False)
        topics: dict[str, set[str]] = {}
        for relation in (relations.draw() for _ in range(300)):
            for question in relation.ask:
                topics.setdefault(question, set()).add(relation.topic)
        several = {question: found for question, found in topics.items() if len(found) > 1}
        assert not several, several


def test_the_assistant_says_your_where_the_user_says_my() -> None:
    owners = set()
    for relation in drawn(held_out=False):
        about = parsed(relation)[1]
        mine = about.startswith("my ")
        owners.add("my" if mine else "I" if about.startswith("I ") else "a name")
        assert not any(has(sentence, "my") for sentence in (*relation.answer, *relation.ack)), relation.name
        assert not any(has(sentence, "your") for sentence in (*relation.tell, *relation.ask, *relation.change))
        assert any(has(sentence, "your") for sentence in relation.answer) == mine, relation.answer
    assert owners == {"my", "I", "a name"}


def test_what_fits_only_ones_own_things_is_said_of_nothing_else() -> None:
    own, others = 0, 0
    for relation in drawn(held_out=False):
        family, thing = parsed(relation)
        if family.verbs:
            continue
        unnamed = [sentence for sentence in (*relation.tell, *relation.change) if not has(sentence, thing)]
        if "'s " in thing:
            others += 1
            assert unnamed == [], relation.name
        else:
            own += len(unnamed)
        assert all(has(sentence, thing) for sentence in relation.ask), relation.name
    assert own > 100
    assert others > 100


@pytest.mark.parametrize("family", WORDS.families, ids=lambda family: family.name)
def test_the_held_out_phrases_of_a_family_are_the_same_for_every_owner(family: Family) -> None:
    for kind in ("tell", "ask"):
        training = family.sentences[kind][:-NUM_HELD_OUT_PHRASES]
        evaluation = family.sentences[kind][-NUM_HELD_OUT_PHRASES:]
        # A sentence with {n} is left out where the thing is another's: the last two would then be others.
        assert not any("{n}" in sentence for sentence in evaluation)
        assert not set(training) & set(evaluation)
        assert len(set(training)) >= 5


def test_the_same_seed_draws_the_same_relations() -> None:
    first, again, other = (OpenRelations(random.Random(seed), held_out=False) for seed in (5, 5, 6))
    relations = [first.draw() for _ in range(20)]
    assert relations == [again.draw() for _ in range(20)]
    assert relations != [other.draw() for _ in range(20)]


def test_a_dialogue_speaks_of_few_things_again_and_again() -> None:
    relations = OpenRelations(random.Random(2), held_out=False)
    names = [relations.draw().name for _ in range(600)]
    by_name = {name.split(": ")[1].split()[-1] for name in names if name.startswith("location")}
    assert 2 <= len(by_name) <= 8

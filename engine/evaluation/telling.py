"""What a recall run tells and how it asks for it again: sentences from five sources, values never in training.

`training` wordings of training's relations, their `held-out` ones, `open` relations of words that training never
saw, and, each in a file of its own and nowhere in training, `everyday` sentences as users write them and
`paraphrases`, told in one wording and asked for in another. Knows no engine.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from engine.errors import InvalidRequest
from engine.training.dialogue import Dialogue, Fact
from engine.training.talk import Talk
from engine.training.values import draw_value

SOURCES = ("training", "held-out", "open", "everyday", "paraphrases")
# Sources whose every wording is unseen.
UNSEEN_WORDINGS = ("everyday", "paraphrases")
# So many draws without a new fact: there is none left.
DRAWS_IN_VAIN = 2000
# Before a sentence of a file, told again with another value.
CORRECTIONS = ("Correction: ", "That has changed: ", "Please update this: ")


@dataclass(frozen=True)
class Telling:
    """A fact as it is told, the ways to ask for it, and the value that a right reply contains.

    Attributes:
        kind: the value's kind.
        topic: what it is about; a question would fit two facts of one topic.
        changes: ways to tell another value of it; {v} is the value.
    """

    relation: str
    sentence: str
    questions: tuple[str, ...]
    value: str
    kind: str
    topic: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Everyday:
    """One sentence of `everyday.toml` and its question; `value` is the value's kind."""

    name: str
    value: str
    tell: str
    ask: str


@dataclass(frozen=True)
class Paraphrased:
    """One relation of `paraphrases.toml`: any of its questions fits any of its sentences."""

    name: str
    value: str
    tell: tuple[str, ...]
    ask: tuple[str, ...]


@cache
def load_everyday() -> tuple[Everyday, ...]:
    """`everyday.toml`, sentence by sentence."""
    return tuple(
        Everyday(table["name"], table["value"], tell, ask)
        for table in _tables("everyday.toml")
        for tell, ask in zip(table["tell"], table["ask"], strict=True)
    )


@cache
def load_paraphrases() -> tuple[Paraphrased, ...]:
    """`paraphrases.toml`, relation by relation."""
    return tuple(
        Paraphrased(table["name"], table["value"], tuple(table["tell"]), tuple(table["ask"]))
        for table in _tables("paraphrases.toml")
    )


def tellings(rng: random.Random, count: int, relations: str, *, held_out_phrases: bool, talk: Talk) -> list[Telling]:
    """So many facts of different relations.

    Args:
        relations: one of `SOURCES`.
        held_out_phrases: wordings that training never saw (of `everyday` and `paraphrases` there are no others).

    Raises:
        InvalidRequest: the source has not so many.
    """
    found: dict[str, Telling] = {}
    dialogue = Dialogue(
        rng, talk, True, held_out_phrases, relations in ("held-out", "open"), float(relations == "open")
    )
    in_vain = 0
    while len(found) < count:
        one = _drawn(dialogue, relations, held_out_phrases)
        in_vain = in_vain + 1 if one.relation in found else 0
        found.setdefault(one.relation, one)
        if in_vain > DRAWS_IN_VAIN:
            raise InvalidRequest(
                f"'{relations}' has {len(found)} different facts, and {count} are asked for: fewer rounds, sessions or "
                "facts, or another source",
                param="relations",
            )
    return list(found.values())


def untold(told: Sequence[Telling], others: Sequence[Telling], count: int) -> list[Telling]:
    """The first `count` of `others` that are of no topic that was told: what is asked of them nobody can know.

    Raises:
        ValueError: there are not so many.
    """
    topics = {one.topic for one in told}
    found = [one for one in others if one.topic not in topics][:count]
    if len(found) < count:
        raise ValueError(f"only {len(found)} of {len(others)} facts are of topics that were not told, not {count}")
    return found


def changed(rng: random.Random, told: Telling) -> Telling:
    """The same fact as it is told later, with another value; neither value is part of the other."""
    old, value = told.value.lower(), told.value
    while value.lower() in old or old in value.lower():
        value = draw_value(rng, told.kind, held_out=True)
    return replace(told, sentence=rng.choice(told.changes).replace("{v}", value), value=value)


def _tables(name: str) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = tomllib.loads((files("engine.evaluation") / name).read_text("utf-8"))["relation"]
    return tables


def _drawn(dialogue: Dialogue, relations: str, held_out_phrases: bool) -> Telling:
    if relations == "everyday":
        one = dialogue.rng.choice(load_everyday())
        return _written(dialogue.rng, one.name, one.value, one.tell, (one.ask,))
    if relations == "paraphrases":
        other = dialogue.rng.choice(load_paraphrases())
        return _written(dialogue.rng, other.name, other.value, dialogue.rng.choice(other.tell), other.ask)
    return _from(dialogue, held_out_phrases)


def _written(rng: random.Random, name: str, kind: str, tell: str, ask: tuple[str, ...]) -> Telling:
    value = draw_value(rng, kind, held_out=True)
    again = tuple(correction + tell for correction in CORRECTIONS)
    return Telling(name, tell.replace("{v}", value), ask, value, kind, name, again)


def _from(dialogue: Dialogue, held_out_phrases: bool) -> Telling:
    fact = dialogue.new_fact()
    relation = fact.relation
    told = relation.phrases("tell", held_out=held_out_phrases)
    asked = relation.phrases("ask", held_out=held_out_phrases)
    questions = tuple(fact.fill(question) for question in asked)
    gap = Fact(relation, fact.entity, "{v}")
    return Telling(
        relation.name,
        fact.fill(dialogue.rng.choice(told)),
        questions,
        fact.value,
        relation.value,
        f"{relation.topic} of {fact.entity}",
        tuple(gap.fill(change) for change in relation.change),
    )

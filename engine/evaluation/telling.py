"""What a recall run tells and how it asks for it again: sentences from four sources, values never in training.

`training` wordings of training's relations, their `held-out` ones, `open` relations of words that training never
saw, and `everyday`: sentences as users write them, kept in `everyday.toml` and nowhere in training. Knows no engine.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from engine.training.dialogue import Dialogue
from engine.training.talk import Talk
from engine.training.values import draw_value

SOURCES = ("training", "held-out", "open", "everyday")


@dataclass(frozen=True)
class Telling:
    """A fact as it is told, the ways to ask for it, and the value that a right reply contains."""

    relation: str
    sentence: str
    questions: tuple[str, ...]
    value: str


@dataclass(frozen=True)
class Everyday:
    """One sentence of `everyday.toml` and its question; `value` is the value's kind."""

    name: str
    value: str
    tell: str
    ask: str


@cache
def load_everyday() -> tuple[Everyday, ...]:
    """`everyday.toml`, sentence by sentence."""
    tables = tomllib.loads((files("engine.evaluation") / "everyday.toml").read_text("utf-8"))["relation"]
    return tuple(
        Everyday(table["name"], table["value"], tell, ask)
        for table in tables
        for tell, ask in zip(table["tell"], table["ask"], strict=True)
    )


def tellings(rng: random.Random, count: int, relations: str, *, held_out_phrases: bool, talk: Talk) -> list[Telling]:
    """So many facts of different relations.

    Args:
        relations: one of `SOURCES`.
        held_out_phrases: wordings that training never saw (of `everyday` there are no others).
    """
    found: dict[str, Telling] = {}
    dialogue = Dialogue(
        rng, talk, True, held_out_phrases, relations in ("held-out", "open"), float(relations == "open")
    )
    while len(found) < count:
        one = _everyday(rng) if relations == "everyday" else _from(dialogue, held_out_phrases)
        found.setdefault(one.relation, one)
    return list(found.values())


def _everyday(rng: random.Random) -> Telling:
    one = rng.choice(load_everyday())
    value = draw_value(rng, one.value, held_out=True)
    return Telling(one.name, one.tell.replace("{v}", value), (one.ask,), value)


def _from(dialogue: Dialogue, held_out_phrases: bool) -> Telling:
    fact = dialogue.new_fact()
    told = fact.relation.phrases("tell", held_out=held_out_phrases)
    asked = fact.relation.phrases("ask", held_out=held_out_phrases)
    questions = tuple(fact.fill(question) for question in asked)
    return Telling(fact.relation.name, fact.fill(dialogue.rng.choice(told)), questions, fact.value)

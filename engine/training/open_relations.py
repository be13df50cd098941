"""Relations without end: families of sentences over open lists of nouns, verbs and owners, and invented words.

A model cannot learn such relations by heart; it has to find what was told by the words of the question. Read from
`facts/open.toml`. A fifth of the words, by hash, belong to evaluation. Knows no values and no tokens.
"""

from __future__ import annotations

import random
import re
import tomllib
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from engine.training.relations import Relation
from engine.training.values import draw_value

OPEN_FILE = "open.toml"

# What one dialogue talks about: few words, so that its facts resemble each other and have to be told apart.
NUM_NOUNS, NUM_KIN, NUM_NAMES, NUM_ADJECTIVES = 5, 4, 3, 4
INVENTED_SHARE, ADJECTIVE_SHARE = 0.25, 0.35


@dataclass(frozen=True)
class Verb:
    """`base` and third-person forms, and the kinds of value it takes (none: the family's)."""

    base: str
    third: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One kind of sentence; exactly one of `nouns`, `attributes` and `verbs` says what fills it."""

    name: str
    values: tuple[str, ...]
    nouns: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]
    verbs: tuple[Verb, ...]
    sentences: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class OpenWords:
    """Everything `facts/open.toml` holds: families, whose things are spoken of, and what stands around sentences."""

    families: tuple[Family, ...]
    kin: tuple[str, ...]
    adjectives: tuple[str, ...]
    wraps: dict[str, tuple[str, ...]]


def is_held_out_word(word: str) -> bool:
    """Whether a noun, attribute or verb belongs to evaluation; a fifth of all do."""
    return zlib.crc32(word.encode()) % 5 == 0


class OpenRelations:
    """The relations of one dialogue: a handful of words, combined anew for every fact.

    Args:
        rng: of the dialogue.
        held_out: take words from evaluation's side.
    """

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self.rng, self.held_out = rng, held_out
        self.words = load_open_words()
        self._nouns: dict[str, list[str]] = {}
        self._kin = rng.sample(self.words.kin, NUM_KIN)
        self._names = [draw_value(rng, "name", held_out=False) for _ in range(NUM_NAMES)]
        self._adjectives = rng.sample(self.words.adjectives, NUM_ADJECTIVES)

    def draw(self) -> Relation:
        """A relation; by its name it can be told from every other of the dialogue."""
        family = self.rng.choice(self.words.families)
        if family.verbs:
            return self._about_someone(family)
        return self._about_something(family)

    def _about_something(self, family: Family) -> Relation:
        rng = self.rng
        if family.attributes:
            noun, kind = rng.choice([pair for pair in family.attributes if self._belongs(pair[0])])
        else:
            noun, kind = rng.choice(self._nouns_of(family)), rng.choice(family.values)
            if rng.random() < ADJECTIVE_SHARE and family.name != "role":
                noun = f"{rng.choice(self._adjectives)} {noun}"
        owner, your_owner = self._owner()
        # "I have a kettle" says it only of one's own.
        mine = owner == "my"
        fill = {"np": f"{owner} {noun}", "your_np": f"{your_owner} {noun}", "n": noun}
        sentences = {
            part: tuple(s for s in every if mine or "{n}" not in s) for part, every in family.sentences.items()
        }
        return _relation(family.name, kind, fill, sentences)

    def _about_someone(self, family: Family) -> Relation:
        rng = self.rng
        verb = rng.choice([verb for verb in family.verbs if self._belongs(verb.base)])
        kind = rng.choice(verb.values or family.values)
        roll = rng.random()
        if roll < 0.45:
            who, you = "I", "you"
        elif roll < 0.75:
            kin = rng.choice(self._kin)
            who, you = f"my {kin}", f"your {kin}"
        else:
            who = you = rng.choice(self._names)
        me = who == "I"
        fill = {
            "s": who,
            "you": you,
            "do": "do" if me else "does",
            "have": "have" if me else "has",
            "verb": verb.base,
            "verbs": verb.base if me else verb.third,
            "your_verbs": verb.base if me else verb.third,
        }
        return _relation(family.name, kind, fill, family.sentences)

    def _owner(self) -> tuple[str, str]:
        """Whose it is, as the user and as the assistant say it."""
        roll = self.rng.random()
        if roll < 0.6:
            return "my", "your"
        if roll < 0.8:
            kin = self.rng.choice(self._kin)
            return f"my {kin}'s", f"your {kin}'s"
        name = self.rng.choice(self._names)
        return f"{name}'s", f"{name}'s"

    def _nouns_of(self, family: Family) -> list[str]:
        if family.name not in self._nouns:
            known = [noun for noun in family.nouns if self._belongs(noun)]
            nouns = self.rng.sample(known, NUM_NOUNS)
            for at in range(NUM_NOUNS):
                if self.rng.random() < INVENTED_SHARE:
                    nouns[at] = self._invented()
            self._nouns[family.name] = nouns
        return self._nouns[family.name]

    def _invented(self) -> str:
        # Some words that values know are nouns too (violin): the side of both must be right.
        while True:
            word = draw_value(self.rng, "word", held_out=self.held_out)
            if word.isalpha() and is_held_out_word(word) == self.held_out:
                return word

    def _belongs(self, word: str) -> bool:
        # A family whose every word is on the other side (there is one with a single verb) is shared.
        return is_held_out_word(word) == self.held_out or word == "work"


@cache
def load_open_words() -> OpenWords:
    """`facts/open.toml`, read once."""
    data = tomllib.loads((files("engine.training") / "facts" / OPEN_FILE).read_text("utf-8"))
    words = {name: tuple(text.split(", ")) for name, text in data["words"].items()}
    doing = tuple(verb for table in data["verb"] for verb in _verbs(table["base"], tuple(table["values"])))
    attributes = tuple((noun, kind) for kind, nouns in data["attributes"].items() for noun in nouns)
    families = []
    for table in data["family"]:
        verbs = doing if table.get("verbs") else _verbs(table.get("verbs_of_place", ""), ())
        families.append(
            Family(
                table["name"],
                tuple(table["values"]),
                tuple(noun for name in table.get("nouns", ()) for noun in words[name]),
                attributes if table.get("attributes") else (),
                verbs,
                {part: tuple(table[part]) for part in ("tell", "ask", "answer", "ack", "change")},
            )
        )
    wraps = {name: tuple(texts) for name, texts in data["wraps"].items()}
    return OpenWords(tuple(families), words["kin"], words["adjectives"], wraps)


def _verbs(text: str, values: tuple[str, ...]) -> tuple[Verb, ...]:
    pairs = (pair.split() for pair in text.split(" | ") if pair)
    return tuple(Verb(base, third, values) for base, third in pairs)


def _relation(family: str, kind: str, fill: dict[str, str], sentences: dict[str, tuple[str, ...]]) -> Relation:
    capitals = {name[:1].upper() + name[1:]: text[:1].upper() + text[1:] for name, text in fill.items()}
    known = {**fill, **capitals, "v": "{v}"}
    filled: dict[str, Any] = {
        part: tuple(re.sub(r"\ba (?=[aeiou])", "an ", one.format_map(known)) for one in every)
        for part, every in sentences.items()
    }
    name = f"{family}: {fill.get('np') or fill['s'] + ' ' + fill['verb']}"
    return Relation(name, kind, False, **filled, asked=fill.get("your_np"))

"""Relations without end: families of sentences over open lists of nouns, verbs and owners, and invented words.

A model cannot learn such relations by heart; it has to find what was told by the words of the question. Read from
`facts/open.toml` and `open_plain.toml`. A fifth of the words, by hash, belong to evaluation. Knows no values and no
tokens.
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

OPEN_FILES = ("open.toml", "open_plain.toml")

# What one dialogue talks about: few words, so that its facts resemble each other and have to be told apart.
NUM_NOUNS, NUM_KIN, NUM_ADJECTIVES = 5, 4, 4
INVENTED_SHARE, ADJECTIVE_SHARE = 0.25, 0.35

# Of the kin and names of a dialogue, those that are one: told of as "my aunt Ada", asked about by either.
NUM_NAMED_KIN = 2

# What a question calls a kind of value, where that is not the kind's own name.
NAMES_OF_KINDS = {"color": "colour"}


@dataclass(frozen=True)
class Verb:
    """`base`, third-person and past forms, and the kinds of value it takes (none: the family's)."""

    base: str
    third: str
    past: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One kind of sentence; exactly one of `nouns`, `attributes` and `verbs` says what fills it.

    `about`: what is asked; one question would fit facts of two families that are about the same. `any_verb`: or of
    two verbs of this one.
    """

    name: str
    about: str
    any_verb: bool
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
        self._names = [draw_value(rng, "name", held_out=False) for _ in range(NUM_KIN)]
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
        return _relation(family.name, kind, fill, sentences, f"{family.about}: {fill['np']}")

    def _about_someone(self, family: Family) -> Relation:
        rng = self.rng
        verb = rng.choice([verb for verb in family.verbs if self._belongs(verb.base)] or family.verbs)
        kind = rng.choice(verb.values or family.values)
        told, who, you, person = self._someone()
        fill = {
            **_forms(verb, who, you),
            "you": you,
            "verb": verb.base,
            "past": verb.past,
            "kind": NAMES_OF_KINDS.get(kind, kind),
        }
        topic = f"{family.about}: {person} {'' if family.any_verb else verb.base}"
        return _relation(family.name, kind, fill, family.sentences, topic, {**fill, **_forms(verb, told, you)})

    def _someone(self) -> tuple[str, str, str, str]:
        """Who does it: as it is told, as it is asked, as the assistant says it, and who that is by any name."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.45:
            return "I", "I", "you", "I"
        which = rng.randrange(NUM_KIN)
        kin, name = self._kin[which], self._names[which]
        if which < NUM_NAMED_KIN:
            who, you = rng.choice(((name, name), (f"my {kin}", f"your {kin}")))
            return f"my {kin} {name}", who, you, f"my {kin}"
        if roll < 0.75:
            return f"my {kin}", f"my {kin}", f"your {kin}", f"my {kin}"
        return name, name, name, name

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


def _forms(verb: Verb, who: str, you: str) -> dict[str, str]:
    """The words of a sentence that change with who does it."""
    me = who == "I"
    return {
        "s": who,
        "do": "do" if me else "does",
        "have": "have" if me else "has",
        "be": "am" if me else "is",
        "im": "I'm" if me else f"{who} is",
        "youre": "you're" if me else f"{you} is",
        "whose": "my" if me else f"{who}'s",
        "verbs": verb.base if me else verb.third,
    }


@cache
def load_open_words() -> OpenWords:
    """`facts/open.toml` and `facts/open_plain.toml`, read once."""
    folder = files("engine.training") / "facts"
    data, *others = (tomllib.loads((folder / name).read_text("utf-8")) for name in OPEN_FILES)
    words = {name: tuple(text.split(", ")) for name, text in data["words"].items()}
    doing = tuple(verb for table in data["verb"] for verb in _verbs(table["base"], tuple(table["values"])))
    attributes = tuple((noun, kind) for kind, nouns in data["attributes"].items() for noun in nouns)
    families = []
    for table in (*data["family"], *(table for other in others for table in other["family"])):
        families.append(
            Family(
                table["name"],
                table.get("about", table["name"]),
                table.get("any_verb", False),
                tuple(table["values"]),
                tuple(noun for name in table.get("nouns", ()) for noun in words[name]),
                attributes if table.get("attributes") else (),
                doing if table.get("verbs") else _own_verbs(table),
                {part: tuple(table[part]) for part in ("tell", "ask", "answer", "ack", "change")},
            )
        )
    wraps = {name: tuple(texts) for name, texts in data["wraps"].items()}
    return OpenWords(tuple(families), words["kin"], words["adjectives"], wraps)


def _own_verbs(table: dict[str, Any]) -> tuple[Verb, ...]:
    """A family's own: its verbs, those of each kind of value, or phrases that have no forms."""
    by_kind = table.get("verbs_by_kind", {}).items()
    phrases = (phrase for phrase in table.get("phrases", "").split(", ") if phrase)
    return (
        *_verbs(table.get("own_verbs", ""), ()),
        *(verb for kind, text in by_kind for verb in _verbs(text, (kind,))),
        *(Verb(phrase, phrase, phrase, ()) for phrase in phrases),
    )


def _verbs(text: str, values: tuple[str, ...]) -> tuple[Verb, ...]:
    """Of "play/plays | buy/buys/bought"; a verb without a past form gets none."""
    forms = [one.split("/") for one in text.split(" | ") if one]
    return tuple(Verb(base, third, past[0] if past else "", values) for base, third, *past in forms)


def _relation(
    family: str,
    kind: str,
    fill: dict[str, str],
    sentences: dict[str, tuple[str, ...]],
    topic: str,
    told: dict[str, str] | None = None,
) -> Relation:
    """A family's sentences without gaps but the value's; `told` fills those that tell, where that is another."""
    filled: dict[str, Any] = {}
    for part, every in sentences.items():
        gaps = (told or fill) if part in ("tell", "change") else fill
        capitals = {name[:1].upper() + name[1:]: text[:1].upper() + text[1:] for name, text in gaps.items()}
        known = {**gaps, **capitals, "v": "{v}"}
        filled[part] = tuple(re.sub(r"\ba (?=[aeiou])", "an ", one.format_map(known)) for one in every)
    name = f"{family}: {fill.get('np') or fill['s'] + ' ' + fill['verb']}"
    return Relation(name, kind, False, **filled, asked=fill.get("your_np"), same_as=topic)

"""The relations of memory dialogues: how a fact is told, asked, answered and changed; and small talk.

Read from the TOML files beside this module. A fifth of the relations, and of every relation's ways to tell and ask
(the last of each list), belong to evaluation. Knows no values and no tokens.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

NUM_HELD_OUT_PHRASES = 2


@dataclass(frozen=True)
class Relation:
    """One kind of fact; `{v}` is its value and `{e}`, where `entity` names a kind, whom it is about.

    `asked` is what a question asks for as the assistant says it ("your dog's name"), where that can be said;
    `same_as` names another relation of the same topic.
    """

    name: str
    value: str
    held_out: bool
    tell: tuple[str, ...]
    ask: tuple[str, ...]
    answer: tuple[str, ...]
    ack: tuple[str, ...]
    change: tuple[str, ...]
    entity: str | None = None
    asked: str | None = None
    same_as: str | None = None

    @property
    def topic(self) -> str:
        """What it is about: a question would fit two relations of one topic, so a dialogue tells only one of them."""
        return self.same_as or self.name.removeprefix("w_")

    def phrases(self, kind: str, *, held_out: bool) -> tuple[str, ...]:
        """The ways to `tell` or `ask` that belong to training, or those that belong to evaluation."""
        every: tuple[str, ...] = getattr(self, kind)
        return every[-NUM_HELD_OUT_PHRASES:] if held_out else every[:-NUM_HELD_OUT_PHRASES]


@dataclass(frozen=True)
class SmallTalk:
    """Talk that tells no fact, and the assistant's stock phrases."""

    pairs: tuple[tuple[str, tuple[str, ...]], ...]
    threads: tuple[tuple[tuple[str, str], ...], ...]
    unknown: tuple[str, ...]
    unknown_about: tuple[str, ...]
    generic_ack: tuple[str, ...]
    generic_answer: tuple[str, ...]
    to_ask: tuple[str, ...]
    nothing_to_ask: tuple[str, ...]


@cache
def load_relations() -> tuple[Relation, ...]:
    """All relations, in the order of their files."""
    found: list[Relation] = []
    folder = files("engine.training") / "facts"
    for name in sorted(entry.name for entry in folder.iterdir()):
        if not name.endswith(".toml") or name.startswith(("small_talk", "open")):
            continue
        for table in tomllib.loads((folder / name).read_text("utf-8"))["relation"]:
            sentences: dict[str, Any] = {key: tuple(table[key]) for key in ("tell", "ask", "answer", "ack", "change")}
            found.append(
                Relation(
                    table["name"],
                    table["value"],
                    table["held_out"],
                    **sentences,
                    entity=table.get("entity"),
                    same_as=table.get("same_as"),
                )
            )
    return tuple(found)


@cache
def load_small_talk() -> SmallTalk:
    """Small talk from the files `small_talk*.toml`; in `unknown_about`, `{np}` is what was asked for."""
    folder = files("engine.training") / "facts"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("small_talk"))
    every = [tomllib.loads((folder / name).read_text("utf-8")) for name in names]
    pairs = [
        (user, tuple(pair["reply"]))
        for data in every
        for pair in data.get("pair", ())
        for user in _wordings(pair["user"])
    ]
    threads = [
        tuple(zip(thread["turns"][::2], thread["turns"][1::2], strict=True))
        for data in every
        for thread in data.get("thread", ())
    ]
    phrases = ("unknown", "unknown_about", "generic_ack", "generic_answer", "to_ask", "nothing_to_ask")
    lists = {key: tuple(phrase for data in every for phrase in data.get(key, ())) for key in phrases}
    return SmallTalk(tuple(pairs), tuple(threads), **lists)


def _wordings(user: str | list[str]) -> list[str]:
    return [user] if isinstance(user, str) else user

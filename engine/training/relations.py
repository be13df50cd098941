"""The relations of memory dialogues: how a fact is told, asked, answered and changed; and small talk.

Read from the TOML files beside this module. A fifth of the relations, and of every relation's ways to tell and ask
(the last of each list), belong to evaluation. Knows no values and no tokens.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

NUM_HELD_OUT_PHRASES = 2


@dataclass(frozen=True)
class Relation:
    """One kind of fact; `{v}` is its value and `{e}`, where `entity` names a kind, whom it is about."""

    name: str
    value: str
    held_out: bool
    tell: tuple[str, ...]
    ask: tuple[str, ...]
    answer: tuple[str, ...]
    ack: tuple[str, ...]
    change: tuple[str, ...]
    entity: str | None = None

    def phrases(self, kind: str, *, held_out: bool) -> tuple[str, ...]:
        """The ways to `tell` or `ask` that belong to training, or those that belong to evaluation."""
        every: tuple[str, ...] = getattr(self, kind)
        return every[-NUM_HELD_OUT_PHRASES:] if held_out else every[:-NUM_HELD_OUT_PHRASES]


@dataclass(frozen=True)
class SmallTalk:
    """Talk that tells no fact, and the assistant's stock phrases."""

    pairs: tuple[tuple[str, tuple[str, ...]], ...]
    unknown: tuple[str, ...]
    generic_ack: tuple[str, ...]
    generic_answer: tuple[str, ...]


@cache
def load_relations() -> tuple[Relation, ...]:
    """All relations, in the order of their files."""
    found: list[Relation] = []
    folder = files("engine.training") / "facts"
    for name in sorted(entry.name for entry in folder.iterdir()):
        if not name.endswith(".toml") or name in ("small_talk.toml", "open.toml"):
            continue
        for table in tomllib.loads((folder / name).read_text("utf-8"))["relation"]:
            lists = {key: tuple(table[key]) for key in ("tell", "ask", "answer", "ack", "change")}
            found.append(
                Relation(table["name"], table["value"], table["held_out"], entity=table.get("entity"), **lists)
            )
    return tuple(found)


@cache
def load_small_talk() -> SmallTalk:
    """Small talk from `small_talk.toml`."""
    text = (files("engine.training") / "facts" / "small_talk.toml").read_text("utf-8")
    data = tomllib.loads(text)
    pairs = tuple((pair["user"], tuple(pair["reply"])) for pair in data["pair"])
    lists = (tuple(data[key]) for key in ("unknown", "generic_ack", "generic_answer"))
    return SmallTalk(pairs, *lists)

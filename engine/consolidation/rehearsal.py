"""Rehearsal: dreams of earlier generations, kept to be gone through again, within a bound and in fair shares.

Knows no store: dreams as text, by `GENERATION:SESSION`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from engine.consolidation.dreams import Dream


def write_dreams(dreams: Sequence[Dream]) -> str:
    """Dreams as JSON."""
    return json.dumps([[dream.reply_at, *dream.tokens] for dream in dreams])


def read_dreams(text: str) -> list[Dream]:
    """The dreams that `write_dreams` was given."""
    return [Dream(tuple(tokens), reply_at) for reply_at, *tokens in json.loads(text)]


def crowded_out(rehearsal: Mapping[str, str], most: int) -> list[str]:
    """Fields to remove so that so many dreams stay: always from the generation that has most."""
    sizes = {name: len(json.loads(text)) for name, text in rehearsal.items()}
    removed: list[str] = []
    while sum(sizes.values()) > most:
        by_generation: dict[str, int] = {}
        for name, size in sizes.items():
            by_generation[name.partition(":")[0]] = by_generation.get(name.partition(":")[0], 0) + size
        largest = max(by_generation, key=lambda number: by_generation[number])
        name = next(name for name in sorted(sizes) if name.startswith(f"{largest}:"))
        removed.append(name)
        del sizes[name]
    return removed

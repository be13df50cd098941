"""Files in the form of the public data, a few lines each: CLINC150, Banking77, and the Kalamang dictionary."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("dog", "river", "train", "spring", "owl", "fox", "name", "late", "lovely", "likes", "leaves", "think")
WORD_LIST = [("kara", "Pronoun", "they (all)"), ("=at", "Marker", "[object]"), ("per", "Noun", "water; river")]
SENTENCES = [
    ("Ma perat sor.", "He drinks the water."),
    ("Mu kara tok.", "They are not yet there."),
    ("An per ruo.", "I dig for water."),
    ("Ma kara.", "He sees them."),
    *((f"Hari {number} yuwa.", f"This is day {number}.") for number in range(20)),
]
UNSEEN = [("Kara perat na.", "They drink water."), ("Mu sor.", "They fish."), ("Ma kara.", "He sees them.")]


def utterances(num_intents: int, count: int) -> list[tuple[str, str]]:
    """Utterances of intents that have a word each."""
    return [
        (f"{WORDS[number]} {WORDS[number]} {at} and so", f"intent_{number}")
        for number in range(num_intents)
        for at in range(count)
    ]


def write_clinc(folder: Path, num_intents: int = 12, count: int = 6) -> Path:
    """A data folder with CLINC150's file; returns it."""
    splits = {name: utterances(num_intents, count) for name in ("train", "val", "test")}
    splits |= {name: [("what is this", "oos")] for name in ("oos_train", "oos_val", "oos_test")}
    (folder / "clinc150").mkdir(parents=True)
    (folder / "clinc150" / "data_full.json").write_text(json.dumps(splits))
    return folder


def write_kalamang(folder: Path) -> Path:
    """A data folder with the dictionary's files; returns it."""
    (folder / "kalamang").mkdir(parents=True)
    tables: dict[str, list[tuple[str, ...]]] = {
        "wordlist.tsv": [*WORD_LIST],
        "parallel_train.tsv": [*SENTENCES],
        "parallel_test.tsv": [*UNSEEN],
    }
    for name, rows in tables.items():
        (folder / "kalamang" / name).write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")
    return folder

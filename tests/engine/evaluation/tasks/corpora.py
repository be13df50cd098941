"""A small folder of public data, made up: enough documents that each of the three parts gets some."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from engine.evaluation.tasks.language import DIALOGUES, FILES, STORIES, TALES

NUM_DOCUMENTS = 120
WIKITEXT = """
 = Lobster =\x20

 The lobster is a <unk> of the sea .\x20

 = = Food = =\x20

 It eats crabs , and naïve fish .\x20

 = Otter =\x20

 The otter swims .\x20
"""


def write_corpora(folder: Path) -> Path:
    """Dialogues, stories, tales and two halves of WikiText; returns the folder."""
    for name in FILES.values():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    turns = [
        [["user", f"Do you like film {n}?"], ["assistant", f"Yes, number {n} is good."]] for n in range(NUM_DOCUMENTS)
    ]
    _write_gzip(folder / FILES[DIALOGUES], [{"topic": "films", "turns": each} for each in turns])
    stories = [f"Once a fox found {n} eggs.\nHe was glad of story {n}.\n" for n in range(NUM_DOCUMENTS)]
    (folder / FILES[STORIES]).write_text("<|endoftext|>".join([*stories, "This one is cut o"]))
    _write_gzip(
        folder / FILES[TALES], [{"text": f"A king had {n} sons.\n\nTale {n} ends."} for n in range(NUM_DOCUMENTS)]
    )
    (folder / FILES["wikitext valid"]).write_text(WIKITEXT)
    (folder / FILES["wikitext test"]).write_text(WIKITEXT.replace("otter", "heron"))
    return folder


def _write_gzip(path: Path, rows: list[object]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

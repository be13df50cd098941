"""Other talk: pairs of a message and a reply that tell no fact, from public dialogues and the bundled small talk.

Reads the files of a data folder where one is given (the model card names their licences); knows no facts.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import yaml

from engine.errors import InvalidRequest
from engine.training.relations import load_small_talk

Pair = tuple[str, str]
MAX_CHARACTERS = 160


FILES = (
    "self_dialogue/self_dialogue.jsonl.gz",
    "taskmaster4/tm4_coffee.jsonl.gz",
    "chatterbot/english",
    "tinystories/tinystories_cased_2M.txt",
    "fairy_tales/fairy_tales.txt",
)


def bundled_pairs() -> list[Pair]:
    """The small talk that ships with the package."""
    return [(user, reply) for user, replies in load_small_talk().pairs for reply in replies]


def corpus_runs(data: Path) -> dict[str, list[list[Pair]]]:
    """Runs of consecutive pairs by corpus, short turns only: `self_dialogue`, `taskmaster4`, `chatterbot`."""
    return {
        "self_dialogue": list(_json_runs(data / "self_dialogue" / "self_dialogue.jsonl.gz")),
        "taskmaster4": list(_json_runs(data / "taskmaster4" / "tm4_coffee.jsonl.gz")),
        "chatterbot": list(_chatterbot_runs(data / "chatterbot" / "english")),
    }


def stories(data: Path) -> list[str]:
    """Paragraphs of simple prose, for turns that are only read."""
    text = (data / "tinystories" / "tinystories_cased_2M.txt").read_text("utf-8")
    tales = (data / "fairy_tales" / "fairy_tales.txt").read_text("utf-8")
    paragraphs = text.replace("<|endoftext|>", "\n").split("\n") + tales.split("\n")
    return [p.strip() for p in paragraphs if 60 < len(p) < 500]


def _check(data: Path) -> None:
    missing = [name for name in FILES if not (data / name).exists()]
    if missing:
        raise InvalidRequest(f"the data folder '{data}' lacks {', '.join(missing)}; or train without it", param="data")


def _json_runs(path: Path) -> Iterator[list[Pair]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = json.loads(line)["turns"]
            yield from _runs([(role, text.strip()) for role, text in turns])


def _runs(turns: list[tuple[str, str]]) -> Iterator[list[Pair]]:
    run: list[Pair] = []
    for (role, text), (next_role, reply) in pairwise(turns):
        if role != "user" or next_role != "assistant":
            continue
        if text and reply and max(len(text), len(reply)) <= MAX_CHARACTERS:
            run.append((text, reply))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _chatterbot_runs(folder: Path) -> Iterator[list[Pair]]:
    for path in sorted(folder.glob("*.yml")):
        for lines in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            texts = [str(line).strip() for line in lines]
            roles = ["user", "assistant"] * len(texts)
            yield from _runs(list(zip(roles, texts, strict=False)))


class Talk:
    """Draws other talk; each corpus with its own weight. InvalidRequest where the data folder lacks a file."""

    WEIGHTS = (
        ("bundled", 0.35),
        ("threads", 0.15),
        ("self_dialogue", 0.32),
        ("chatterbot", 0.1),
        ("taskmaster4", 0.08),
    )

    def __init__(self, data: Path | None) -> None:
        threads = [list(thread) for thread in load_small_talk().threads]
        self.runs: dict[str, list[list[Pair]]] = {"bundled": [[pair] for pair in bundled_pairs()], "threads": threads}
        self.paragraphs: list[str] = []
        if data is not None:
            _check(data)
            self.runs.update(corpus_runs(data))
            self.paragraphs = stories(data)
        self._names = [name for name, _ in self.WEIGHTS if name in self.runs]
        self._weights = [weight for name, weight in self.WEIGHTS if name in self.runs]

    def run(self, rng: random.Random, most: int) -> list[Pair]:
        """Up to `most` consecutive pairs of one conversation."""
        name = rng.choices(self._names, self._weights)[0]
        run = rng.choice(self.runs[name])
        # The later turns of a thread lean on those before.
        start = 0 if name == "threads" else rng.randrange(max(1, len(run) - most + 1))
        return run[start : start + most]

    def paragraph(self, rng: random.Random) -> str:
        """A paragraph to be read without a reply; small talk where no data folder was given."""
        return rng.choice(self.paragraphs) if self.paragraphs else self.run(rng, 1)[0][0]

"""Language modelling on public text: trained on dialogues, stories and fairy tales, measured on those held out and
on WikiText-2, which is never trained on.

A document belongs to training, validation or test by a hash of its text. A line or turn is read as the tokenizer
writes it, with a space before it; only its text counts, special tokens are read and never guessed. Knows no models.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.tokenizer import ASSISTANT, END, PAD, USER, Tokenizer

DIALOGUES, STORIES, TALES = "dialogues", "stories", "tales"
WIKITEXT = ("wikitext valid", "wikitext test")
FILES = {
    DIALOGUES: "self_dialogue/self_dialogue.jsonl.gz",
    STORIES: "tinystories/tinystories_cased_2M.txt",
    TALES: "fairy_tales/fairy_tales.jsonl.gz",
    "wikitext valid": "wikitext2/valid.txt",
    "wikitext test": "wikitext2/test.txt",
}
# Rows of training by corpus; and of every corpus one document in twenty for validation, one for the test.
SHARES = {DIALOGUES: 0.4, STORIES: 0.3, TALES: 0.3}
NUM_PARTS = 20
NUM_VALIDATION_ROWS = 32

# A turn or a line: the special token before it, if any, and its text.
Part = tuple[int | None, str]
Document = list[Part]


@dataclass(frozen=True)
class LanguagePlan:
    """Sizes of the task.

    Attributes:
        num_rows, num_tokens: rows of a training step and tokens of each; tests are read in rows as long.
        stream_tokens: tokens over which the stream conditions carry memory.
        wikitext_tokens: how much of each half of WikiText-2 is measured, from its beginning (whole articles); 0: all.
        held_out_tokens: the same of held-out dialogues, and of held-out stories and tales together.
    """

    num_rows: int = 8
    num_tokens: int = 256
    stream_tokens: int = 4096
    wikitext_tokens: int = 131_072
    held_out_tokens: int = 32_768


@dataclass(frozen=True)
class Passage:
    """Text to be measured on: its tokens, which of them count, and the bytes of UTF-8 that those stand for.

    A part's bytes are those of its text and the one space that the tokenizer puts before it. `<unk>` of WikiText is
    five bytes as any others: the tokenizer writes every byte, so nothing is unknown to it.
    """

    ids: list[int]
    counts: list[bool]
    num_bytes: int

    def rows(self, num_tokens: int) -> Examples:
        """The passage in rows; every token that counts is a target once, the last row is padded."""
        missing = -(len(self.ids) - 1) % num_tokens
        ids, counts = [*self.ids, *[PAD] * missing], [*self.counts, *[False] * missing]
        starts = range(0, len(ids) - 1, num_tokens)
        return Examples.of(
            [ids[start : start + num_tokens + 1] for start in starts],
            [counts[start : start + num_tokens + 1] for start in starts],
        )


class LanguageTask:
    """Next-token prediction on a data folder's text.

    Raises:
        InvalidRequest: the folder lacks a file.
    """

    def __init__(self, data: Path, tokenizer: Tokenizer, plan: LanguagePlan | None = None) -> None:
        missing = [name for name in FILES.values() if not (data / name).is_file()]
        if missing:
            raise InvalidRequest(f"the data folder '{data}' lacks {', '.join(missing)}", param="data")
        self.plan = plan or LanguagePlan()
        self.name = f"language {self.plan.num_rows}x{self.plan.num_tokens}"
        self.vocab_size = tokenizer.vocab_size
        self._data, self._tokenizer = data, tokenizer
        self._parts = {name: _split(_documents(data / FILES[name])) for name in SHARES}

    def training(self, seed: int, step: int) -> Examples:
        """Rows that each begin at a turn or line of a document and go on with further documents."""
        return self._drawn(f"{seed}:{step}", "training", self.plan.num_rows)

    def validation(self, seed: int) -> Examples:
        """Rows of documents kept for validation, the same for every seed."""
        return self._drawn("validation", "validation", NUM_VALIDATION_ROWS)

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """Every passage in rows of the training's length, and WikiText-2's test also in streams."""
        for name, passage in self.passages.items():
            yield name, passage.rows(self.plan.num_tokens)
        yield "wikitext stream", self.passages["wikitext test"].rows(self.plan.stream_tokens)

    @cached_property
    def passages(self) -> dict[str, Passage]:
        """What is measured, by condition; none of it is ever in training."""
        found = {
            name: self._passage(_articles(self._data / FILES[name]), self.plan.wikitext_tokens) for name in WIKITEXT
        }
        prose = [*self._parts[STORIES]["test"], *self._parts[TALES]["test"]]
        for name, documents in ((DIALOGUES, self._parts[DIALOGUES]["test"]), (STORIES, prose)):
            shuffled = random.Random(name).sample(documents, len(documents))
            found[name] = self._passage(shuffled, self.plan.held_out_tokens)
        return found

    def _drawn(self, key: str, part: str, num_rows: int) -> Examples:
        rng, size = random.Random(key), self.plan.num_tokens + 1
        rows, counts = [], []
        for _ in range(num_rows):
            (corpus,) = rng.choices(list(SHARES), list(SHARES.values()))
            documents = self._parts[corpus][part]
            row: list[int] = []
            counted: list[bool] = []
            while len(row) < size:
                document = rng.choice(documents)
                start = 0 if row else rng.randrange(len(document))
                _append(self._tokenizer, document[start:], row, counted)
            rows.append(row[:size])
            counts.append(counted[:size])
        return Examples.of(rows, counts)

    def _passage(self, documents: Iterable[Document], most_tokens: int) -> Passage:
        ids: list[int] = []
        counts: list[bool] = []
        num_bytes = 0
        for document in documents:
            if most_tokens and len(ids) >= most_tokens:
                break
            _append(self._tokenizer, document, ids, counts)
            num_bytes += sum(len(text.encode()) + 1 for _, text in document)
        return Passage(ids, counts, num_bytes)


def _append(tokenizer: Tokenizer, document: Document, ids: list[int], counts: list[bool]) -> None:
    """Adds a document's tokens; an end token stands before it and counts no more than other special ones."""
    ids.append(END)
    counts.append(False)
    for opening, text in document:
        if opening is not None:
            ids.append(opening)
            counts.append(False)
        own = tokenizer.encode(text)
        ids += own
        counts += [True] * len(own)


def _split(documents: Iterator[Document]) -> dict[str, list[Document]]:
    """Documents by what they are for; equal ones are for the same, whatever stands around them."""
    found: dict[str, list[Document]] = {"training": [], "validation": [], "test": []}
    for document in documents:
        place = zlib.crc32("\n".join(text for _, text in document).encode()) % NUM_PARTS
        found["test" if place == 0 else "validation" if place == 1 else "training"].append(document)
    return found


def _documents(path: Path) -> Iterator[Document]:
    """Documents of a training corpus that have any text."""
    if path.name == Path(FILES[STORIES]).name:
        # The last story of the file is cut off.
        documents = (_prose(story) for story in path.read_text("utf-8").split("<|endoftext|>")[:-1])
    else:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        documents = (_prose(row["text"]) if "text" in row else _dialogue(row["turns"]) for row in rows)
    yield from (document for document in documents if document)


def _prose(text: str) -> Document:
    return [(None, line.strip() + "\n") for line in text.split("\n") if line.strip()]


def _dialogue(turns: list[list[str]]) -> Document:
    return [(USER if role == "user" else ASSISTANT, text.strip()) for role, text in turns if text.strip()]


def _articles(path: Path) -> Iterator[Document]:
    """The articles of WikiText: each begins with a heading of the first order, "= Title ="."""
    article: Document = []
    for part in _prose(path.read_text("utf-8")):
        if article and re.fullmatch(r"= [^=].*[^=] =\n", part[1]):
            yield article
            article = []
        article.append(part)
    yield article

"""Text to hide things in: words as tokens, prose that belongs to training or to tests, and the hiding itself.

Prose is the bundled small talk, or stories where a folder of public data is given. A word that a task does not name
shares its token with others by a hash, so that the vocabulary stays small. Knows no questions.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from engine.errors import InvalidRequest
from engine.training.relations import load_small_talk

Part = Literal["training", "validation", "tests"]
Sentence = list[int]

NUM_BUCKETS = 256
STORIES = Path("tinystories") / "tinystories_cased_2M.txt"
_WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")
_SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"”]?")


def part_of(text: str) -> Part:
    """Whose a text is, by its hash: a tenth is validation's, two tenths are the tests', the rest is training's."""
    rest = zlib.crc32(text.encode()) % 10
    return "validation" if rest == 0 else "tests" if rest < 3 else "training"


class Lexicon:
    """Words and their tokens: a task's own words have one each, all others share `NUM_BUCKETS`."""

    def __init__(self, own: Iterable[str]) -> None:
        self.own = tuple(dict.fromkeys(own))
        self._tokens = {word: token for token, word in enumerate(self.own)}

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.own) + NUM_BUCKETS

    def encode(self, text: str) -> Sentence:
        """Tokens of a text, a word or a mark each, upper and lower case alike."""
        return [self.token(word) for word in _WORD.findall(text.lower())]

    def token(self, word: str) -> int:
        """Token of a word."""
        own = self._tokens.get(word)
        return len(self.own) + zlib.crc32(word.encode()) % NUM_BUCKETS if own is None else own

    def word(self, token: int) -> str:
        """A task's own word, or "~" for a token that words share."""
        return self.own[token] if token < len(self.own) else "~"


class Prose:
    """Passages of training and of the tests; no sentence is in both. A passage keeps its sentences' order.

    Raises:
        InvalidRequest: the data folder lacks the stories.
    """

    def __init__(self, data: Path | None) -> None:
        passages = _small_talk() if data is None else _stories(data)
        self.training = [passage for passage in passages if part_of(passage[0]) == "training"]
        known = {sentence.lower() for passage in self.training for sentence in passage}
        rest = ([one for one in passage if one.lower() not in known] for passage in passages)
        self.tests = [passage for passage in rest if passage]

    def encoded(self, lexicon: Lexicon, part: Part) -> list[list[Sentence]]:
        """Passages in a lexicon's tokens; validation reads the tests' no more than training does."""
        passages = self.tests if part == "tests" else self.training
        return [[lexicon.encode(sentence) for sentence in passage] for passage in passages]


def draw_sentences(rng: random.Random, passages: Sequence[Sequence[Sentence]], num_tokens: int) -> list[Sentence]:
    """Sentences of whole passages, exactly so many tokens: the last one is cut."""
    sentences: list[Sentence] = []
    room = num_tokens
    while room > 0:
        for sentence in rng.choice(passages):
            if room > 0:
                sentences.append(sentence[:room])
                room -= len(sentences[-1])
    return sentences


def hide(rng: random.Random, sentences: Sequence[Sentence], hidden: Sequence[Sentence]) -> list[int]:
    """The tokens of a text with sentences put in at random places between its own, in the order given."""
    places = sorted(rng.randrange(len(sentences) + 1) for _ in hidden)
    tokens: list[int] = []
    waiting = list(zip(places, hidden, strict=True))
    for place in range(len(sentences) + 1):
        while waiting and waiting[0][0] == place:
            tokens += waiting.pop(0)[1]
        if place < len(sentences):
            tokens += sentences[place]
    return tokens


def short_length(num_tokens: int) -> str:
    """A length as a condition names it: "512", "16K"."""
    return f"{num_tokens // 1024}K" if num_tokens % 1024 == 0 else str(num_tokens)


def _small_talk() -> list[list[str]]:
    talk = load_small_talk()
    turns = [user for user, _ in talk.pairs] + [reply for _, replies in talk.pairs for reply in replies]
    threads = [" ".join(turn for pair in thread for turn in pair) for thread in talk.threads]
    return [_SENTENCE.findall(text) or [text] for text in dict.fromkeys([*turns, *threads])]


def _stories(data: Path) -> list[list[str]]:
    path = data / STORIES
    if not path.is_file():
        raise InvalidRequest(f"the data folder '{data}' lacks {STORIES}; or measure without it", param="data")
    stories = path.read_text("utf-8").split("<|endoftext|>")
    # The file's last story is cut short.
    found = ([one.strip() for one in _SENTENCE.findall(story)] for story in stories[:-1])
    return [passage for passage in found if passage]

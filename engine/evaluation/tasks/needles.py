"""Needles in a haystack, as RULER names them (arXiv 2404.06654; HOPE.md §2, Table 1): told once, asked at the end.

S-1 hides it in five sentences repeated, S-2 in prose, S-3 hides a long code; MK, MQ and MV hide four. Keys, values
and prose of the tests are never in training. Words are tokens, numbers and codes two digits a token. Knows no models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.evaluation.tasks.haystack import (
    Lexicon,
    Part,
    Prose,
    Sentence,
    draw_sentences,
    hide,
    part_of,
    short_length,
)

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TELL = "a magic number of {key} is {value} ."
ASK = "what are the magic numbers of {key} ? {key} is"
ADJECTIVES = (
    "able big brave calm clever cold dark deep dry early fair fast fine gentle glad happy hard high kind large "
    "late light long loud lucky neat new odd old pale plain proud quick rare rich round sharp slow small warm"
).split()
NOUNS = (
    "apple arrow basket bell boat bridge button candle castle cloud coin crown door feather forest garden glass "
    "hammer island jacket kettle ladder lamp lantern market mirror mountain needle ocean paper pencil pillow river "
    "rope saddle spoon table tower wagon window"
).split()
HEXADECIMAL = tuple(f"{number:02x}" for number in range(256))
DECIMAL = tuple(f"{number:02d}" for number in range(100))
LENGTHS = (1024, 2048, 4096, 8192, 16384)
TRAINING_LENGTHS = (256, 512, 1024, 2048)
SHORTEST = 256


@dataclass(frozen=True)
class Kind:
    """What a row hides.

    Attributes:
        name: as the table's columns begin.
        noise: in sentences repeated, not in prose.
        num_keys, num_values: keys, and values each.
        num_asked: how many of the keys are asked.
        num_pairs: tokens of a value, two digits each: decimal, or hexadecimal where it is more than 3.
    """

    name: str
    noise: bool = False
    num_keys: int = 1
    num_values: int = 1
    num_asked: int = 1
    num_pairs: int = 3


KINDS = (
    Kind("S-1", noise=True),
    Kind("S-2"),
    Kind("S-3", num_pairs=8),
    Kind("MK", num_keys=4),
    Kind("MQ", num_keys=4, num_asked=4),
    Kind("MV", num_values=4),
)
# More questions a row teach more; the one of S-1 to S-3, MK and MV among them.
TRAINING_KINDS = (
    *(Kind("", noise=True, num_keys=number, num_asked=number) for number in (1, 2, 4)),
    *(Kind("", num_keys=number, num_asked=number) for number in (1, 2, 4)),
    Kind("", num_keys=2, num_asked=2, num_pairs=8),
    Kind("", num_values=4),
)
# So many steps are drill, bare and dense rows: from there recall is found, and spreads to longer texts.
DRILL_STEPS, DRILL_LENGTH, DRILL_KIND = 1400, 63, Kind("", num_keys=2)
DRILL = "{key} is {value} ."


@dataclass(frozen=True)
class Needle:
    """A key and its values, as words."""

    key: str
    values: tuple[str, ...]


@cache
def lexicon() -> Lexicon:
    """The words of needles, questions, noise, keys and values."""
    frame = f"{TELL} {ASK} {NOISE} ,".format(key="", value="").lower().replace(".", " . ").replace("?", " ? ").split()
    return Lexicon([*frame, *ADJECTIVES, *NOUNS, *HEXADECIMAL])


class Needles:
    """Training at 256 to 2048 tokens, tests at longer ones.

    Attributes:
        lengths: of the tests, in tokens.
        longest: one more length for S-1 alone; None for no more.
        num_tests: rows a condition of S-1; of the others half as many.
        batch_tokens: tokens of a training step.

    Raises:
        InvalidRequest: a length is too short, or the data folder lacks the stories.
    """

    def __init__(
        self,
        data: Path | None = None,
        lengths: Sequence[int] = LENGTHS,
        longest: int | None = 32768,
        num_tests: int = 16,
        batch_tokens: int = 1024,
        training_lengths: Sequence[int] = TRAINING_LENGTHS,
    ) -> None:
        if min(*lengths, *training_lengths) < SHORTEST:
            raise InvalidRequest(
                f"a row with all its needles and questions has at least {SHORTEST} tokens", param="lengths"
            )
        self.lexicon = lexicon()
        self.vocab_size = self.lexicon.size
        self.lengths, self.longest, self.num_tests = tuple(lengths), longest, num_tests
        self.batch_tokens, self.training_lengths = batch_tokens, tuple(training_lengths)
        prose = Prose(data)
        self._noise = [self.lexicon.encode(f"{one}.") for one in NOISE.split(".")[:-1]]
        self._passages = {part: prose.encoded(self.lexicon, part) for part in ("training", "tests")}
        sizes = ",".join(map(short_length, (*self.lengths, *((longest,) if longest else ()))))
        self.name = f"needles in {'small talk' if data is None else 'stories'}, {sizes} of {num_tests} rows"

    def training(self, seed: int, step: int) -> Examples:
        """Drill first; then rows of one length and of any kind, half of the steps of the shortest length."""
        rng = random.Random(f"needles training {seed} {step}")
        shares = [0.5**place for place in range(len(self.training_lengths))]
        if step < DRILL_STEPS:
            return self._drill(rng)
        length = rng.choices(self.training_lengths, shares)[0]
        num_rows = max(1, self.batch_tokens // length)
        return self._examples(rng, "training", [rng.choice(TRAINING_KINDS) for _ in range(num_rows)], length)

    def validation(self, seed: int) -> Examples:
        """16 rows of 512 tokens with keys and values that no training step has."""
        rng = random.Random(f"needles validation {seed}")
        return self._examples(rng, "validation", [rng.choice(TRAINING_KINDS) for _ in range(16)], 512)

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """Conditions "S-1 1K" and on, kind by kind."""
        for kind in KINDS:
            single = kind.noise and self.longest is not None
            for length in (*self.lengths, self.longest) if single else self.lengths:
                assert length is not None
                rng = random.Random(f"needles tests {seed} {kind.name} {length}")
                num_rows = self.num_tests if kind.noise else max(1, self.num_tests // 2)
                yield f"{kind.name} {short_length(length)}", self._examples(rng, "tests", [kind] * num_rows, length)

    def _examples(self, rng: random.Random, part: Part, kinds: Sequence[Kind], length: int) -> Examples:
        rows, answers = zip(*(self._row(rng, part, kind, length) for kind in kinds), strict=True)
        return Examples.of(list(rows), list(answers))

    def _drill(self, rng: random.Random) -> Examples:
        """Rows that tell two numbers and ask for them again and again, with nothing between."""
        rows, answers = [], []
        for _ in range(max(1, self.batch_tokens // 2 // DRILL_LENGTH)):
            needles = draw_needles(rng, "training", DRILL_KIND)
            tokens: list[int] = []
            marks: list[bool] = []
            for needle in (*needles, *rng.choices(needles, k=DRILL_LENGTH // 7)):
                said = self.lexicon.encode(DRILL.format(key=needle.key, value=needle.values[0]))
                asked = len(tokens) >= len(said) * len(needles)
                tokens, marks = tokens + said, marks + [asked and 3 <= place < 6 for place in range(len(said))]
            rows.append(tokens[: DRILL_LENGTH + 1])
            answers.append(marks[: DRILL_LENGTH + 1])
        return Examples.of(rows, answers)

    def _row(self, rng: random.Random, part: Part, kind: Kind, length: int) -> tuple[list[int], list[bool]]:
        """Tokens (one more than are read) and which of them are answers."""
        needles = draw_needles(rng, part, kind)
        told = [self.lexicon.encode(TELL.format(key=one.key, value=value)) for one in needles for value in one.values]
        rng.shuffle(told)
        questions: list[int] = []
        marks: list[bool] = []
        for needle in rng.sample(needles, kind.num_asked):
            ask = self.lexicon.encode(ASK.format(key=needle.key))
            questions, marks = questions + ask, marks + [False] * len(ask)
            # Values in the order in which the text tells them; a comma or a stop after each is no part of the answer.
            for place, value in enumerate(sorted(needle.values, key=lambda one: _place(told, self.lexicon, one))):
                tokens = self.lexicon.encode(value)
                end = self.lexicon.encode("." if place == len(needle.values) - 1 else ",")
                questions, marks = questions + tokens + end, marks + [True] * len(tokens) + [False]
        room = length + 1 - len(questions) - sum(map(len, told))
        tokens = hide(rng, self._hay(rng, part, kind, room), told)
        return tokens + questions, [False] * len(tokens) + marks

    def _hay(self, rng: random.Random, part: Part, kind: Kind, num_tokens: int) -> list[Sentence]:
        if not kind.noise:
            return draw_sentences(rng, self._passages["tests" if part == "tests" else "training"], num_tokens)
        sentences: list[Sentence] = []
        for sentence in cycle(self._noise):
            if num_tokens <= 0:
                break
            sentences.append(sentence[:num_tokens])
            num_tokens -= len(sentences[-1])
        return sentences


def draw_needles(rng: random.Random, part: Part, kind: Kind) -> list[Needle]:
    """Needles with different keys and values, all of this part."""
    found: dict[str, Needle] = {}
    while len(found) < kind.num_keys:
        key = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        if part_of(key) == part and key not in found:
            found[key] = Needle(key, tuple(_value(rng, part, kind.num_pairs) for _ in range(kind.num_values)))
    return list(found.values())


def _value(rng: random.Random, part: Part, num_pairs: int) -> str:
    """A number, or where it is long a code, two digits a word."""
    digits = DECIMAL if num_pairs <= 3 else HEXADECIMAL
    while True:
        value = " ".join(rng.choice(digits) for _ in range(num_pairs))
        if part_of(value) == part:
            return value


def _place(told: list[Sentence], words: Lexicon, value: str) -> int:
    """Which of the sentences tells a value."""
    tokens = words.encode(value)
    return next(place for place, sentence in enumerate(told) if sentence[-1 - len(tokens) : -1] == tokens)

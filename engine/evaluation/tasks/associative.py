"""Multi-query associative recall (MQAR, Zoology: arXiv 2312.04927): pairs of keys and values, then queries in filler.

Which key may have which value is split by a hash: a pair of the tests was never told in training, nor in validation.
Knows no models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from engine.evaluation.examples import Examples
from engine.evaluation.tasks.haystack import Part, part_of

NUM_KEYS, NUM_VALUES, NUM_FILLERS = 64, 64, 16
FIRST_KEY, FIRST_VALUE = NUM_FILLERS, NUM_FILLERS + NUM_KEYS
PAIRS = (4, 8, 16, 32, 64)
# So many steps have the fewest pairs in short rows: from there recall is found, and spreads to more.
EASY_STEPS = 500


class AssociativeRecall:
    """Rows of `2 * pairs` tokens of pairs, then each key once more among filler, its value to be told.

    Attributes:
        pairs: numbers of pairs, trained on in turn and tested one by one.
        batch_tokens: tokens of a training step.
        num_tests: rows a condition.
    """

    vocab_size = NUM_FILLERS + NUM_KEYS + NUM_VALUES

    def __init__(self, pairs: Sequence[int] = PAIRS, batch_tokens: int = 512, num_tests: int = 64) -> None:
        self.pairs = tuple(pairs)
        self.batch_tokens = batch_tokens
        self.num_tests = num_tests
        self.name = f"mqar {','.join(map(str, self.pairs))} of {num_tests} rows, {batch_tokens} tokens a step"

    def training(self, seed: int, step: int) -> Examples:
        """Rows of one number of pairs, drawn anew every step."""
        rng = random.Random(f"mqar training {seed} {step}")
        num_pairs = rng.choice(self.pairs[: 1 if step < EASY_STEPS else None])
        length = max(32, 4 * num_pairs) if step < EASY_STEPS or rng.random() < 0.5 else num_tokens(num_pairs)
        return _examples(rng, "training", num_pairs, max(1, self.batch_tokens // length), length)

    def validation(self, seed: int) -> Examples:
        """64 rows of the middle number of pairs, told in no training step."""
        num_pairs = self.pairs[len(self.pairs) // 2]
        rng = random.Random(f"mqar validation {seed}")
        return _examples(rng, "validation", num_pairs, 64, num_tokens(num_pairs))

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """Conditions "pairs 4" and on."""
        for num_pairs in self.pairs:
            rng = random.Random(f"mqar tests {seed} {num_pairs}")
            yield f"pairs {num_pairs}", _examples(rng, "tests", num_pairs, self.num_tests, num_tokens(num_pairs))


def num_tokens(num_pairs: int) -> int:
    """Tokens a row: 128, and 256 for more than 32 pairs (four a pair are needed)."""
    return max(128, 4 * num_pairs)


def draw_pairs(rng: random.Random, part: Part, num_pairs: int) -> list[tuple[int, int]]:
    """Tokens of different keys, each with a value of this part; two keys may have the same value."""
    keys = rng.sample(range(FIRST_KEY, FIRST_VALUE), num_pairs)
    return [(key, _value(rng, part, key)) for key in keys]


def _value(rng: random.Random, part: Part, key: int) -> int:
    while True:
        value = FIRST_VALUE + rng.randrange(NUM_VALUES)
        if part_of(f"{key} {value}") == part:
            return value


def _examples(rng: random.Random, part: Part, num_pairs: int, num_rows: int, length: int) -> Examples:
    rows, answers = zip(*(_row(rng, part, num_pairs, length) for _ in range(num_rows)), strict=True)
    return Examples.of(list(rows), list(answers))


def _row(rng: random.Random, part: Part, num_pairs: int, length: int) -> tuple[list[int], list[bool]]:
    """Tokens (one more than are read: the last one is only a target) and which of them are answers."""
    pairs = draw_pairs(rng, part, num_pairs)
    tokens = [token for pair in pairs for token in pair]
    marks = [False] * len(tokens)
    room = length - 2 * len(tokens)
    asked = list(pairs)
    if part == "training":
        # A question asked again teaches more than filler.
        again = rng.randrange(room // 2 + 1)
        asked += rng.choices(pairs, k=again)
        room -= 2 * again
    line: list[tuple[int, int] | None] = [*asked, *([None] * room)]
    rng.shuffle(line)
    for pair in line:
        tokens += [rng.randrange(NUM_FILLERS)] if pair is None else pair
        marks += [False] if pair is None else [False, True]
    return [*tokens, 0], [*marks, False]

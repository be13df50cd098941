"""A task that a tiny model learns in a moment: say the symbol again that stood before the question mark."""

from __future__ import annotations

import random
from collections.abc import Iterator

from engine.evaluation.examples import Examples

ASK, NUM_SYMBOLS = 8, 8


class Copying:
    """Rows of `symbol ASK symbol`, four times over."""

    name = "copying"
    vocab_size = NUM_SYMBOLS + 1

    def training(self, seed: int, step: int) -> Examples:
        return self._rows(f"training {seed} {step}", 8, 4)

    def validation(self, seed: int) -> Examples:
        return self._rows(f"validation {seed}", 8, 4)

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        yield "short", self._rows(f"test {seed}", 4, 4)
        yield "long", self._rows(f"test {seed}", 4, 12)
        yield "short", self._rows(f"test {seed} again", 4, 4)

    @staticmethod
    def _rows(seed: str, num_rows: int, times: int) -> Examples:
        rng = random.Random(seed)
        rows, answers = [], []
        for _ in range(num_rows):
            symbols = [rng.randrange(NUM_SYMBOLS) for _ in range(times)]
            rows.append([token for symbol in symbols for token in (symbol, ASK, symbol)])
            answers.append([False, False, True] * times)
        return Examples.of(rows, answers)

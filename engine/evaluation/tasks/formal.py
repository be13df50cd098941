"""Formal languages (HOPE.md §2, Table 5), marked as Irie et al. 2023 and Bhattamishra et al. 2020 do.

A model reads a string of a language, symbol by symbol, and says of every prefix what may follow: whether it is in the
language (parity, (aa)*, (abab)*), or which symbols are next. A string is right where all its prefixes are. All
languages are learned at once; each has symbols of its own, so none needs to be named. Knows no models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.evaluation.tasks.haystack import Part, part_of

SHORTEST = 8


@dataclass(frozen=True)
class Language:
    """A formal language.

    Attributes:
        name: as the table's columns begin.
        alphabet: its symbols.
        draw: a string of (at most, and nearly) so many symbols.
        labels: what may follow every prefix of a string of the language.
        single: it has one string of each length, so that training and tests cannot but share the short ones.
    """

    name: str
    alphabet: str
    draw: Callable[[random.Random, int], str]
    labels: Callable[[str], list[str]]
    single: bool


class FormalLanguages:
    """Trained on strings of up to `longest` symbols (bin 0), tested on those and on up to twice as long ones (bin 1).

    Attributes:
        longest: the paper's data have 50.
        num_rows: strings of a training step.
        num_tests: strings a condition, of languages that have so many.

    Raises:
        InvalidRequest: `longest` leaves too few strings.
    """

    def __init__(self, longest: int = 16, num_rows: int = 16, num_tests: int = 64) -> None:
        if longest < SHORTEST:
            raise InvalidRequest(f"too few strings have at most {longest} symbols: let it be {SHORTEST} or more")
        self.longest, self.num_rows, self.num_tests = longest, num_rows, num_tests
        symbols = [(language.name, symbol) for language in LANGUAGES for symbol in language.alphabet]
        # Token 0 pads the ends of short strings.
        self.symbols = {symbol: token for token, symbol in enumerate(symbols, 1)}
        self.labels = {label: token for token, label in enumerate(LABELS, 1 + len(symbols))}
        self.vocab_size = 1 + len(symbols) + len(LABELS)
        self.name = f"formal languages to {longest} and {2 * longest}"

    def training(self, seed: int, step: int) -> Examples:
        """Strings of all languages in turn, of any length up to `longest`."""
        rng = random.Random(f"formal training {seed} {step}")
        first = step * self.num_rows
        chosen = [LANGUAGES[(first + place) % len(LANGUAGES)] for place in range(self.num_rows)]
        return self.examples([(one, self._string(rng, "training", one, 2, self.longest)) for one in chosen])

    def validation(self, seed: int) -> Examples:
        """Strings of those lengths; of the languages that allow it, none is in training."""
        rng = random.Random(f"formal validation {seed}")
        chosen = [language for language in LANGUAGES for _ in range(16)]
        return self.examples([(one, self._string(rng, "validation", one, 2, self.longest)) for one in chosen])

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """Conditions "parity 0", "parity 1" and on; bin 1 holds no string as short as training's."""
        bins = ((2, self.longest), (self.longest + 1, 2 * self.longest))
        for language in LANGUAGES:
            for number, (shortest, longest) in enumerate(bins):
                rng = random.Random(f"formal tests {seed} {language.name} {number}")
                drawn = (self._string(rng, "tests", language, shortest, longest) for _ in range(self.num_tests))
                yield f"{language.name} {number}", self.examples([(language, one) for one in dict.fromkeys(drawn)])

    def examples(self, strings: list[tuple[Language, str]]) -> Examples:
        """Rows of strings: symbols as tokens, and of every prefix its label's token as the target."""
        longest = max(len(string) for _, string in strings)
        tokens_BT = torch.zeros(len(strings), longest, dtype=torch.int64)
        target_BT, counts_BT = tokens_BT.clone(), torch.zeros(tokens_BT.shape, dtype=torch.bool)
        for row, (language, string) in enumerate(strings):
            own = slice(0, len(string))
            tokens_BT[row, own] = torch.tensor([self.symbols[language.name, symbol] for symbol in string])
            target_BT[row, own] = torch.tensor([self.labels[label] for label in language.labels(string)])
            counts_BT[row, own] = True
        return Examples(tokens_BT, target_BT, counts_BT)

    @staticmethod
    def _string(rng: random.Random, part: Part, language: Language, shortest: int, longest: int) -> str:
        while True:
            string = language.draw(rng, rng.randint(shortest, longest))
            if len(string) >= shortest and (language.single or part_of(f"{language.name} {string}") == part):
                return string


def _parity(rng: random.Random, length: int) -> str:
    """Bits with an even number of ones."""
    bits = "".join(rng.choice("01") for _ in range(length - 1))
    return bits + str(bits.count("1") % 2)


def _repeated(unit: str) -> Callable[[random.Random, int], str]:
    return lambda rng, length: unit * (length // len(unit))


def _counted(symbols: str) -> Callable[[random.Random, int], str]:
    return lambda rng, length: "".join(symbol * (length // len(symbols)) for symbol in symbols)


def _shuffle(rng: random.Random, length: int) -> str:
    """Two balanced strings, of round and of square brackets, shuffled together."""
    num_pairs = length // 2
    num_round = rng.randint(0, num_pairs)
    parts = [_balanced(rng, num_round, "()"), _balanced(rng, num_pairs - num_round, "[]")]
    string = ""
    while parts[0] or parts[1]:
        own = rng.randrange(len(parts[0]) + len(parts[1])) >= len(parts[0])
        string, parts[own] = string + parts[own][0], parts[own][1:]
    return string


def _balanced(rng: random.Random, num_pairs: int, brackets: str) -> str:
    """A balanced string; opening and closing are as likely wherever both may be."""
    string, depth, left = "", 0, num_pairs
    while left or depth:
        if left and (depth == 0 or rng.random() < 0.5):
            string, depth, left = string + brackets[0], depth + 1, left - 1
        else:
            string, depth = string + brackets[1], depth - 1
    return string


def _membership(belongs: Callable[[str], bool]) -> Callable[[str], list[str]]:
    return lambda string: ["in" if belongs(string[:end]) else "out" for end in range(1, len(string) + 1)]


def _next_symbols(symbols: str) -> Callable[[str], list[str]]:
    """Of a^n b^n and the like: the first symbol may go on or give way, the rest are counted off."""
    first = f"{symbols[0]} or {symbols[1]}"

    def labels(string: str) -> list[str]:
        count = len(string) // len(symbols)
        rest = [symbol for symbol in symbols[1:] for _ in range(count)]
        return [first] * count + [*rest[1:], "end"]

    return labels


def _open_brackets(string: str) -> list[str]:
    """Which brackets may be closed after each prefix."""
    found, depths = [], {"(": 0, "[": 0}
    for symbol in string:
        depths["(" if symbol in "()" else "["] += 1 if symbol in "([" else -1
        found.append("".join(one for one, depth in depths.items() if depth) or "none")
    return found


LANGUAGES = (
    Language("parity", "01", _parity, _membership(lambda prefix: prefix.count("1") % 2 == 0), False),
    Language("(aa)*", "a", _repeated("aa"), _membership(lambda prefix: len(prefix) % 2 == 0), True),
    Language("(abab)*", "ab", _repeated("abab"), _membership(lambda prefix: len(prefix) % 4 == 0), True),
    Language("anbn", "ab", _counted("ab"), _next_symbols("ab"), True),
    Language("anbncn", "abc", _counted("abc"), _next_symbols("abc"), True),
    Language("shuffle-2", "()[]", _shuffle, _open_brackets, False),
)
LABELS = ("in", "out", "a or b", "b", "c", "end", "none", "(", "[", "([")

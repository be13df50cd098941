"""Kalamang and English from a word list and parallel sentences, read before each question, as in MTOB.

A row is pairs: words and their meanings, sentences and their translations, last the asked sentence. How to use a
page like that is learned on languages invented for one row; no Kalamang is in those. Knows no models.

MTOB: Tanzer et al., "A Benchmark for Learning to Translate a New Language from One Grammar Book" (2024); the data:
Visser, "Kalamang dictionary" (Dictionaria 13, 2020).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.tokenizer import ASSISTANT, END, PAD, USER, Tokenizer

FOLDER = Path("kalamang")
DIRECTIONS = ("kgv-en", "en-kgv")
# A sentence or word and what it means in the other language.
Pair = tuple[str, str]
SYLLABLES = [c + v for c in ("b", "d", "g", "k", "l", "m", "n", "p", "r", "s", "t", "w", "") for v in "aeiou"]
WORD = re.compile(r"[\w']+")


@dataclass(frozen=True)
class Book:
    """What is known of a language: pairs (there, English)."""

    words: list[Pair]
    sentences: list[Pair]
    tests: list[Pair]

    def facing(self, direction: str) -> Book:
        """The same with the language translated from first: `kgv-en` as it is, `en-kgv` turned round."""
        if direction == DIRECTIONS[0]:
            return self
        parts = ([(there, here) for here, there in part] for part in (self.words, self.sentences, self.tests))
        return Book(*parts)


@dataclass(frozen=True)
class PagePlan:
    """How much is read before a question.

    Attributes:
        words: entries of the word list, at most.
        sentences: translated sentences.
        row_tokens: longest row; of a page that is longer, the first entries are left out.
        answer_tokens: longest translation.
    """

    words: int = 10
    sentences: int = 1
    row_tokens: int = 192
    answer_tokens: int = 32


def read_kalamang(data: Path | None) -> Book:
    """The word list, the parallel sentences, and the test sentences in the order of a hash.

    Raises:
        InvalidRequest: no folder was given, or it lacks a file.
    """
    names = ("wordlist.tsv", "parallel_train.tsv", "parallel_test.tsv")
    missing = [name for name in names if data is None or not (data / FOLDER / name).is_file()]
    if data is None or missing:
        raise InvalidRequest(f"translation needs --data FOLDER with {FOLDER}/: {', '.join(missing)}", param="data")
    words, sentences, tests = (_table(data / FOLDER / name) for name in names)
    entries = [(head.strip("=- "), _plain(gloss)) for head, _, gloss in words]
    known = {there for there, _ in (line[:2] for line in sentences)}
    unseen = [(line[0], line[1]) for line in tests if line[0] not in known]
    unseen.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())
    return Book([(h, g) for h, g in entries if h and g], [(line[0], line[1]) for line in sentences], unseen)


def page(book: Book, source: str, plan: PagePlan) -> list[Pair]:
    """What is read before a sentence is translated: entries of its words, then sentences most like it.

    An entry is that of the word itself, else of its longest beginning of three letters or more. The sentence itself
    is never among the sentences.
    """
    entries = [entry for word in dict.fromkeys(_words(source)) if (entry := _entry(book.words, word)) is not None]
    wanted = set(_words(source))
    alike = sorted((pair for pair in book.sentences if pair[0] != source), key=lambda pair: -_overlap(wanted, pair[0]))
    return [*dict.fromkeys(entries[: plan.words]), *reversed(alike[: plan.sentences])]


def spell(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[int]:
    """Pairs as ids, each `USER` source `ASSISTANT` target `END`."""
    return [
        token
        for source, target in pairs
        for token in (USER, *tokenizer.encode(source), ASSISTANT, *tokenizer.encode(target), END)
    ]


def question(book: Book | None, source: str, plan: PagePlan, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the translation begins; without a book nothing is read before the sentence."""
    asked = [USER, *tokenizer.encode(source), ASSISTANT]
    room = max(0, plan.row_tokens - plan.answer_tokens - len(asked))
    read = spell(page(book, source, plan), tokenizer) if book is not None else []
    return [*read[max(0, len(read) - room) :], *asked]


def word_for_word(book: Book, source: str) -> str:
    """Every word replaced by what the word list gives for it; words it lacks stay as they are."""
    found = [(word, _entry(book.words, word)) for word in _words(source)]
    return " ".join(word if entry is None else entry[1] for word, entry in found)


class InventedLanguages:
    """Pages and questions in languages that exist for one row (a `Task`); the English is that of other sentences."""

    def __init__(self, english: Sequence[str], plan: PagePlan, tokenizer: Tokenizer, rows: int = 16) -> None:
        self.name = f"invented-{plan.row_tokens}"
        self.vocab_size = tokenizer.vocab_size
        self.plan, self.tokenizer, self.rows = plan, tokenizer, rows
        # One sentence in ten is kept for validation.
        self.kept, self.english = list(english[::10]), [one for at, one in enumerate(english) if at % 10]

    def training(self, seed: int, step: int) -> Examples:
        """Rows of as many new languages, half of them in each direction."""
        rng = random.Random(f"invented {seed} {step}")
        return self._rows(rng, self.english, self.rows)

    def validation(self, seed: int) -> Examples:
        """Rows of other languages and other sentences."""
        return self._rows(random.Random(f"validation {seed}"), self.kept, 2 * self.rows)

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """As validation, with other languages."""
        yield "invented", self._rows(random.Random(f"test {seed}"), self.kept, 2 * self.rows)

    def _rows(self, rng: random.Random, english: list[str], count: int) -> Examples:
        rows = []
        for number in range(count):
            direction = DIRECTIONS[number % 2]
            one, *others = rng.sample(english, 1 + self.plan.sentences)
            book = invent(rng, one, others).facing(direction)
            source, target = book.tests[0]
            rows.append((question(book, source, self.plan, self.tokenizer), self.tokenizer.encode(target)))
        return _examples(rows, self.plan)


class Sentences:
    """Parallel sentences alone, in both directions (a `Task`): what weights are fine-tuned on."""

    def __init__(self, sentences: Sequence[Pair], plan: PagePlan, tokenizer: Tokenizer, rows: int = 32) -> None:
        self.name = "kalamang-sentences"
        self.vocab_size = tokenizer.vocab_size
        self.plan, self.tokenizer, self.rows = plan, tokenizer, rows
        self.kept, self.sentences = list(sentences[::10]), [one for at, one in enumerate(sentences) if at % 10]

    def training(self, seed: int, step: int) -> Examples:
        """Sentences drawn anew, half of them in each direction."""
        return self._rows(random.Random(f"sentences {seed} {step}"), self.sentences, self.rows)

    def validation(self, seed: int) -> Examples:
        """One sentence in ten, never trained on."""
        return self._rows(random.Random(f"validation {seed}"), self.kept, 2 * self.rows)

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """The sentences of validation; translations are marked by chrF elsewhere."""
        yield "sentences", self.validation(seed)

    def _rows(self, rng: random.Random, pairs: list[Pair], count: int) -> Examples:
        rows = []
        for number, pair in enumerate(rng.choices(pairs, k=count)):
            source, target = pair if number % 2 == 0 else pair[::-1]
            rows.append((question(None, source, self.plan, self.tokenizer), self.tokenizer.encode(target)))
        return _examples(rows, self.plan)


def invent(rng: random.Random, sentence: str, others: Sequence[str]) -> Book:
    """A language for one row: a word for every English one, an ending now and then, and an order of words.

    Its word list gives the words of `sentence`, shuffled; `others` are its translated sentences.
    """
    known = list(dict.fromkeys(word for one in (sentence, *others) for word in _words(one)))
    words = {word: "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) + rng.choice("nrtk") for word in known}
    ending, turned = rng.choice(("", "at", "a", "un")), rng.random() < 0.5

    def told(english: str) -> str:
        spoken = [words[word] + (ending if rng.random() < 0.2 else "") for word in _words(english)]
        return " ".join(spoken[::-1] if turned else spoken).capitalize() + "."

    listed = [(words[word], word) for word in dict.fromkeys(_words(sentence))]
    rng.shuffle(listed)
    return Book(listed, [(told(one), one) for one in others], [(told(sentence), sentence)])


def _examples(rows: Sequence[tuple[list[int], list[int]]], plan: PagePlan) -> Examples:
    """Questions and their translations as rows of one length; what counts is the translation and its end."""
    rows = [(asked, [*answer[: plan.answer_tokens - 1], END]) for asked, answer in rows]
    longest = max(len(asked) + len(answer) for asked, answer in rows)
    tokens, marks = [], []
    for asked, answer in rows:
        missing = longest - len(asked) - len(answer)
        tokens.append([*asked, *answer, *[PAD] * missing])
        marks.append([*[False] * len(asked), *[True] * len(answer), *[False] * missing])
    return Examples.of(tokens, marks)


def _table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]


def _plain(gloss: str) -> str:
    """The first meaning of an entry, without remarks in brackets."""
    return re.sub(r"\(.*?\)", "", re.split(r"[;,]", gloss)[0]).strip()


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _entry(entries: Sequence[Pair], word: str) -> Pair | None:
    """The entry of a word: itself, or a meaning that contains it, or the longest beginning of it."""
    best: tuple[int, int, Pair] | None = None
    for entry in entries:
        head = entry[0].lower()
        if head == word:
            score = 1000
        elif word in _words(head):
            score = 500
        elif len(head) >= 3 and word.startswith(head):
            score = len(head)
        else:
            continue
        if best is None or (score, -len(head)) > best[:2]:
            best = (score, -len(head), entry)
    return None if best is None else best[2]


def _overlap(wanted: set[str], sentence: str) -> float:
    """Shared words for the words of both (Jaccard)."""
    found = set(_words(sentence))
    return len(wanted & found) / max(1, len(wanted | found))

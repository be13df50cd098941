"""Intents that come class by class: utterances of CLINC150 or of a CSV file, and class-incremental episodes of them.

An episode is text: an utterance, then its label, task after task. Labels are tokens drawn anew for every episode, so
only what was read tells them. Classes that are tested are in no episode of training. Knows no models.

CLINC150: Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction" (2019).
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.tokenizer import ASSISTANT, Tokenizer

CLINC_FILE = Path("clinc150") / "data_full.json"
NUM_VALIDATION_ROWS = 32
# An utterance's ids and the id of its label.
Labelled = tuple[list[int], int]
Texts = list[tuple[str, str]]
# A row's ids, and which of them are labels that can be known.
Row = tuple[list[int], list[bool]]
# Intent -> the ids of its utterances.
Utterances = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Corpus:
    """Utterances as ids: `shown` to learn from, `asked` to be tested with, by intent, in the order of a hash."""

    shown: Utterances
    asked: Utterances


@dataclass(frozen=True)
class Stage:
    """One task of a class-incremental stream: what is shown of its classes, and what is asked of them."""

    shown: list[Labelled]
    asked: list[Labelled]

    @property
    def labels(self) -> list[int]:
        """Ids of the labels of this task's classes."""
        return sorted({label for _, label in self.shown})

    def text(self) -> list[int]:
        """The ids that a memory reads."""
        return [token for one in self.shown for token in spell(*one)]


@dataclass(frozen=True)
class StreamPlan:
    """A class-incremental stream.

    Attributes:
        num_tasks, classes_per_task: how its classes come.
        shots: utterances shown of each class; every way of learning sees these and no others.
        queries: utterances asked of each class after its task and after every later one.
    """

    num_tasks: int = 10
    classes_per_task: int = 2
    shots: int = 5
    queries: int = 10


def spell(utterance: list[int], label: int) -> list[int]:
    """An utterance and its label as they are read; the label is what follows `ASSISTANT`."""
    return [*utterance, ASSISTANT, label]


def read_clinc(data: Path | None) -> tuple[Texts, Texts]:
    """(utterance, intent) pairs of CLINC150's train and test split, without the out-of-scope ones.

    Raises:
        InvalidRequest: no folder was given, or it lacks the file.
    """
    if data is None or not (data / CLINC_FILE).is_file():
        raise InvalidRequest(f"intents need --data FOLDER with {CLINC_FILE}, or --csv TRAIN TEST", param="data")
    splits = json.loads((data / CLINC_FILE).read_text("utf-8"))
    train, test = ([(text, intent) for text, intent in splits[name]] for name in ("train", "test"))
    return train, test


def read_csv(path: Path) -> Texts:
    """(utterance, intent) pairs of a CSV file with the columns `text` and `category`, as Banking77's.

    Raises:
        InvalidRequest: there is no such file, or it lacks a column.
    """
    if not path.is_file():
        raise InvalidRequest(f"there is no file '{path.name}'", param="csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"text", "category"} <= set(rows.fieldnames or ()):
            raise InvalidRequest(f"'{path.name}' needs the columns text and category", param="csv")
        return [(row["text"], row["category"]) for row in rows]


def split_intents(intents: Sequence[str], num_tested: int) -> tuple[list[str], list[str]]:
    """Intents of training's episodes, and those tested: the first by a hash of their names, the same everywhere.

    Raises:
        InvalidRequest: nothing would be left for training.
    """
    ordered = sorted(set(intents), key=lambda intent: hashlib.sha256(intent.encode()).hexdigest())
    if len(ordered) < num_tested + 2:
        raise InvalidRequest(
            f"{num_tested} tested classes of {len(ordered)} leave none to learn from; ask for fewer tasks or classes"
        )
    return ordered[num_tested:], ordered[:num_tested]


def corpus_of(train: Texts, test: Texts, trained: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> Corpus:
    """Utterances as ids, each cut to its rarest `max_tokens` tokens (in their order; 0 keeps all).

    Args:
        trained: the intents in whose utterances of `train` a token's frequency is counted.
    """
    known, counted = set(trained), Counter[int]()
    for text, intent in train:
        if intent in known:
            counted.update(set(tokenizer.encode(text)))

    def shortened(texts: Texts) -> Utterances:
        found: Utterances = {}
        for text, intent in texts:
            found.setdefault(intent, []).append(rarest(tokenizer.encode(text), counted, max_tokens))
        return found

    return Corpus(shortened(train), shortened(test))


def rarest(tokens: list[int], counted: Mapping[int, int], max_tokens: int) -> list[int]:
    """The `max_tokens` rarest of an utterance's tokens, in the order in which they stand."""
    if not max_tokens or len(tokens) <= max_tokens:
        return tokens
    places = sorted(range(len(tokens)), key=lambda place: (counted.get(tokens[place], 0), place))
    return [tokens[place] for place in sorted(places[:max_tokens])]


class IntentEpisodes:
    """Class-incremental episodes (a `Task`), and the streams that tests are made of."""

    def __init__(
        self,
        corpus: Corpus,
        trained: Sequence[str],
        tested: Sequence[str],
        vocab_size: int,
        num_labels: int,
        *,
        batch_tokens: int = 1024,
        row_tokens: int = 128,
        easy_steps: int = 0,
        group: int = 4,
        shots: int = 2,
    ) -> None:
        """Episodes of `row_tokens` tokens: tasks of `group` classes with so many `shots`, and as many queries between.

        Args:
            vocab_size: of the tokenizer; the labels' ids follow.
            batch_tokens: tokens of a training step.
            easy_steps: up to this step some rows are easy, all at first, none at last: every class has one utterance
                of one to three tokens, which only needs to be found again.
        """
        self.name = f"intents, {easy_steps} easy steps, then {group} x {shots} in {row_tokens} tokens"
        self.vocab_size = vocab_size + num_labels
        self.labels = range(vocab_size, vocab_size + num_labels)
        self.corpus, self.trained, self.tested = corpus, list(trained), list(tested)
        self.batch_tokens, self.row_tokens, self.easy_steps = batch_tokens, row_tokens, easy_steps
        self.group, self.shots = group, shots

    def training(self, seed: int, step: int) -> Examples:
        """Rows of classes of training; a label counts from its second time on, when it can be known."""
        rng = random.Random(f"intents {seed} {step}")
        num_rows = max(1, self.batch_tokens // self.row_tokens)
        num_easy = round(num_rows * max(0.0, 1.0 - step / max(1, self.easy_steps)))
        rows = [self._row(rng, self.trained, self.corpus.shown, is_easy=row < num_easy) for row in range(num_rows)]
        return _examples(rows)

    def validation(self, seed: int) -> Examples:
        """Rows of training's classes in utterances that training never sees."""
        rng = random.Random(f"validation {seed}")
        return _examples([self._row(rng, self.trained, self.corpus.asked) for _ in range(NUM_VALIDATION_ROWS)])

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """Rows like training's, of classes that training never sees."""
        rng = random.Random(f"test {seed}")
        rows = [self._row(rng, self.tested, self.corpus.asked) for _ in range(NUM_VALIDATION_ROWS)]
        yield "unseen classes", _examples(rows)

    def stream(self, seed: int, plan: StreamPlan, *, tested: bool = True) -> list[Stage]:
        """Classes task by task, with labels drawn for this stream: tested ones, or training's to choose settings on.

        Raises:
            InvalidRequest: there are too few classes, labels or utterances.
        """
        num_classes = plan.num_tasks * plan.classes_per_task
        pool = self.tested if tested else self.trained
        if num_classes > min(len(pool), len(self.labels)):
            raise InvalidRequest(f"{num_classes} classes are more than there are classes ({len(pool)}) or labels")
        rng = random.Random(f"stream {seed} {tested}")
        label_of = dict(zip(rng.sample(pool, num_classes), rng.sample(self.labels, num_classes), strict=True))
        intents = list(label_of)
        stages = []
        for start in range(0, num_classes, plan.classes_per_task):
            own = intents[start : start + plan.classes_per_task]
            shown = _draw(rng, self.corpus.shown, own, label_of, plan.shots)
            stages.append(Stage(shown, _draw(rng, self.corpus.asked, own, label_of, plan.queries)))
        return stages

    def _row(self, rng: random.Random, intents: list[str], source: Utterances, *, is_easy: bool = False) -> Row:
        """Some classes task by task, with queries of all so far between and after them."""
        label_of = self._drawn(rng, intents, self.group * rng.randint(1, 4))
        order = list(label_of)
        if is_easy:
            cut = {intent: rng.choice(source[intent])[: rng.randint(1, 3)] for intent in order}
            source = {intent: [one] * self.shots for intent, one in cut.items()}
        told: list[Labelled] = []
        for start in range(0, self.row_tokens, self.group):
            told += _draw(rng, source, order[start : start + self.group], label_of, self.shots)
            review = rng.choices(order[: start + self.group], k=self.group * self.shots)
            told += [(rng.choice(source[intent]), label_of[intent]) for intent in review]
        return _row_of(told, self.row_tokens)

    def _drawn(self, rng: random.Random, intents: list[str], count: int) -> dict[str, int]:
        """So many classes, or all there are, with labels of this row."""
        count = min(count, len(intents), len(self.labels))
        return dict(zip(rng.sample(intents, count), rng.sample(self.labels, count), strict=True))


def _row_of(told: Sequence[Labelled], num_tokens: int) -> Row:
    """The first `num_tokens` + 1 ids of what is told; a label can be known when it was told before."""
    tokens: list[int] = []
    marks: list[bool] = []
    seen = set[int]()
    for utterance, label in told:
        tokens += spell(utterance, label)
        marks += [*[False] * (len(utterance) + 1), label in seen]
        seen.add(label)
    return tokens[: num_tokens + 1], marks[: num_tokens + 1]


def _examples(rows: Sequence[Row]) -> Examples:
    return Examples.of([tokens for tokens, _ in rows], [marks for _, marks in rows])


def _draw(
    rng: random.Random, source: Utterances, intents: Sequence[str], label_of: Mapping[str, int], count: int
) -> list[Labelled]:
    """So many different utterances of every class, shuffled."""
    for intent in intents:
        if len(source.get(intent, ())) < count:
            raise InvalidRequest(f"'{intent}' has fewer than {count} utterances")
    drawn = [(one, label_of[intent]) for intent in intents for one in rng.sample(source[intent], count)]
    rng.shuffle(drawn)
    return drawn

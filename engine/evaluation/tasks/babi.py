"""BABILong's first question (arXiv 2406.10149): bAbI qa1's people move from place to place while a story is told.

The facts stand in order among sentences of other text, at last one person is asked for. Facts come from qa1's own
grammar, or in the tests from its file where a folder of public data is given. Knows no models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.evaluation.tasks.haystack import Lexicon, Part, Prose, draw_sentences, hide, part_of, short_length

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
MOVES = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
TRAINING_LENGTHS = (128, 256, 512, 1024)
SHORTEST = 128
FILE = Path("babi_qa1") / "qa1_single-supporting-fact_test.txt"
# Questions of a training row; a test has one.
NUM_ASKED = 4


@dataclass(frozen=True)
class Story:
    """Facts in order, and questions asked after all of them: person and place."""

    facts: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


class Babi:
    """Training at 128 to 1024 tokens, tests at longer ones.

    Attributes:
        lengths: of the tests, in tokens.
        num_tests: rows a condition.
        batch_tokens: tokens of a training step.

    Raises:
        InvalidRequest: a length is too short, or the data folder lacks a file.
    """

    def __init__(
        self,
        data: Path | None = None,
        lengths: Sequence[int] = LENGTHS,
        num_tests: int = 16,
        batch_tokens: int = 1024,
        training_lengths: Sequence[int] = TRAINING_LENGTHS,
    ) -> None:
        if min(*lengths, *training_lengths) < SHORTEST:
            raise InvalidRequest(f"a row with all its facts has at least {SHORTEST} tokens", param="lengths")
        self.lengths, self.num_tests = tuple(lengths), num_tests
        self.batch_tokens, self.training_lengths = batch_tokens, tuple(training_lengths)
        self.lexicon = Lexicon(" ".join((*PEOPLE, *PLACES, *MOVES, "where is the ? .")).lower().split())
        self.vocab_size = self.lexicon.size
        prose = Prose(data)
        self._passages = {part: prose.encoded(self.lexicon, part) for part in ("training", "tests")}
        # A story that the grammar could have told in training is none of the tests'.
        told = [] if data is None else [one for one in read_stories(data) if part_of(" ".join(one.facts)) == "tests"]
        self._told = None if data is None else told
        sizes = ",".join(map(short_length, self.lengths))
        source = "generated, in small talk" if data is None else "of the file, in stories"
        self.name = f"babi qa1 {source}, {sizes} of {num_tests} rows"

    def training(self, seed: int, step: int) -> Examples:
        """Rows of one length; half of the steps are of the shortest."""
        rng = random.Random(f"babi training {seed} {step}")
        shares = [0.5**place for place in range(len(self.training_lengths))]
        length = rng.choices(self.training_lengths, shares)[0]
        stories = [draw_story(rng, "training", NUM_ASKED) for _ in range(max(1, self.batch_tokens // length))]
        return self._examples(rng, "training", stories, length)

    def validation(self, seed: int) -> Examples:
        """32 rows of 256 tokens with stories that no training step has."""
        rng = random.Random(f"babi validation {seed}")
        return self._examples(rng, "validation", [draw_story(rng, "validation", 1) for _ in range(32)], 256)

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """Conditions "1K" and on."""
        for length in self.lengths:
            rng = random.Random(f"babi tests {seed} {length}")
            if self._told is None:
                stories = [draw_story(rng, "tests", 1) for _ in range(self.num_tests)]
            else:
                stories = rng.sample(self._told, self.num_tests)
            yield short_length(length), self._examples(rng, "tests", stories, length)

    def _examples(self, rng: random.Random, part: Part, stories: Sequence[Story], length: int) -> Examples:
        rows, answers = zip(*(self._row(rng, part, story, length) for story in stories), strict=True)
        return Examples.of(list(rows), list(answers))

    def _row(self, rng: random.Random, part: Part, story: Story, length: int) -> tuple[list[int], list[bool]]:
        """Tokens (one more than are read) and which of them are answers."""
        facts = [self.lexicon.encode(fact) for fact in story.facts]
        questions: list[int] = []
        marks: list[bool] = []
        for person, place in story.questions:
            ask = self.lexicon.encode(f"Where is {person}?")
            questions += [*ask, self.lexicon.token(place), self.lexicon.token(".")]
            marks += [False] * len(ask) + [True, False]
        room = length + 1 - len(questions) - sum(map(len, facts))
        passages = self._passages["tests" if part == "tests" else "training"]
        tokens = hide(rng, draw_sentences(rng, passages, room), facts)
        return tokens + questions, [False] * len(tokens) + marks


def draw_story(rng: random.Random, part: Part, num_asked: int) -> Story:
    """2, 4, 6, 8 or 10 facts of this part, as qa1 has before its questions, and questions about people in them."""
    while True:
        places: dict[str, str] = {}
        facts: list[str] = []
        for _ in range(rng.choice((2, 4, 6, 8, 10))):
            person, place = rng.choice(PEOPLE), rng.choice(PLACES)
            places[person] = place
            facts.append(f"{person} {rng.choice(MOVES)} the {place}.")
        if part_of(" ".join(facts)) == part:
            asked = rng.choices(list(places), k=num_asked)
            return Story(tuple(facts), tuple((person, places[person]) for person in asked))


def read_stories(data: Path) -> list[Story]:
    """Every question of qa1's test file with the facts before it.

    Raises:
        InvalidRequest: the data folder lacks that file.
    """
    path = data / FILE
    if not path.is_file():
        raise InvalidRequest(f"the data folder '{data}' lacks {FILE}; or measure without it", param="data")
    found: list[Story] = []
    facts: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        number, text = line.split(" ", 1)
        if number == "1":
            facts = []
        asked = re.match(r"Where is (\w+)\? *\t(\w+)", text)
        if asked is None:
            facts.append(" ".join(text.split()))
        else:
            found.append(Story(tuple(facts), ((asked[1], asked[2]),)))
    return found

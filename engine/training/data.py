"""Memory dialogues: told facts, other talk, corrections, questions; endless, and the same for the same seed.

They teach how to remember, not what: values are drawn anew for every dialogue (`values.py`), and held-out relations,
phrases and values never occur in training. Knows text and tokens; no model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.tokenizer import ASSISTANT, END, PAD, USER, Tokenizer
from engine.training.relations import Relation, load_relations, load_small_talk
from engine.training.talk import Talk
from engine.training.values import KINDS, draw_value

REPLY_WEIGHT, VALUE_WEIGHT, MESSAGE_WEIGHT, TALK_WEIGHT = 1.0, 3.0, 0.25, 0.4


@dataclass(frozen=True)
class Stage:
    """How the dialogues of one part of the curriculum look.

    Attributes:
        num_tokens: length of a row.
        num_rows: rows of a batch.
        most_facts: upper bound of facts a dialogue holds at a time.
        talk: highest share of turns that are other talk; each dialogue draws its own below it.
    """

    num_tokens: int
    num_rows: int
    most_facts: int
    talk: float


@dataclass(frozen=True)
class Line:
    """One turn of a generated dialogue; `value` is what a right answer contains (answers only)."""

    message: str
    reply: str | None
    value: str | None = None
    is_talk: bool = False


@dataclass
class Fact:
    """Something the user has told."""

    relation: Relation
    entity: str | None
    value: str

    def fill(self, template: str) -> str:
        """The template with this fact's value and entity in place."""
        text = template.replace("{v}", self.value)
        text = text if self.entity is None else text.replace("{e}", self.entity)
        return text[:1].upper() + text[1:] if template[:1] in "{" else text


@dataclass
class Dialogue:
    """Writes one dialogue, turn by turn.

    `held_out` takes values from evaluation's side; `held_out_phrases` and `held_out_relations` do so for wordings
    and relations.
    """

    rng: random.Random
    talk: Talk
    held_out: bool = False
    held_out_phrases: bool = False
    held_out_relations: bool = False
    facts: list[Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.relations = [r for r in load_relations() if r.held_out == self.held_out_relations]
        self.phrases = load_small_talk()

    def lines(self, stage: Stage) -> Iterator[Line]:
        """Turns without end."""
        rng = self.rng
        talk = rng.random() * stage.talk
        most = rng.randint(2, stage.most_facts)
        echo = rng.choice((0.3, 0.8, 1.0))
        while True:
            roll = rng.random()
            if roll < talk:
                for message, reply in self.talk.run(rng, rng.randint(1, 3)):
                    yield Line(message, reply, is_talk=True)
            elif roll < talk + 0.01:
                yield Line(self.talk.paragraph(rng), None, is_talk=True)
            elif len(self.facts) < 1 or (len(self.facts) < most and rng.random() < 0.5):
                yield self.tell(echo)
            elif rng.random() < 0.08:
                yield self.ask_unknown()
            elif rng.random() < 0.12:
                yield self.change(echo)
            else:
                yield self.ask(rng.choice(self.facts))
            if len(self.facts) >= most and rng.random() < 0.15:
                self.facts.pop(0)

    def new_fact(self) -> Fact:
        """A fact nobody has told yet in this dialogue."""
        rng = self.rng
        told = {(fact.relation.name, fact.entity) for fact in self.facts}
        while True:
            relation = rng.choice(self.relations)
            entity = relation.entity and draw_value(rng, relation.entity, held_out=self.held_out)
            if (relation.name, entity) not in told:
                return Fact(relation, entity, self._value(relation))

    def tell(self, echo: float) -> Line:
        """A new fact, or two in one message."""
        facts = [self.new_fact()]
        self.facts.append(facts[0])
        if self.rng.random() < 0.15:
            facts.append(self.new_fact())
            self.facts.append(facts[1])
        told = [fact.fill(self.rng.choice(self._wordings(fact.relation, "tell"))) for fact in facts]
        return Line(self._join(told), self._acknowledge(facts[-1], echo))

    def change(self, echo: float) -> Line:
        """A told fact's new value."""
        fact = self.rng.choice(self.facts)
        fact.value = self._value(fact.relation)
        return Line(fact.fill(self.rng.choice(fact.relation.change)), self._acknowledge(fact, echo))

    def ask(self, fact: Fact) -> Line:
        """A question about a told fact, and its answer."""
        question = fact.fill(self.rng.choice(self._wordings(fact.relation, "ask")))
        if self.rng.random() < 0.1:
            question = question[:1].lower() + question[1:].rstrip("?")
        frames = self.phrases.generic_answer if self.rng.random() < 0.05 else fact.relation.answer
        return Line(question, fact.fill(self.rng.choice(frames)), fact.value)

    def ask_unknown(self) -> Line:
        """A question about something never told."""
        fact = self.new_fact()
        told = {other.relation.name for other in self.facts}
        if fact.relation.name in told and fact.entity is None:
            return self.ask(next(f for f in self.facts if f.relation.name == fact.relation.name))
        question = fact.fill(self.rng.choice(self._wordings(fact.relation, "ask")))
        return Line(question, self.rng.choice(self.phrases.unknown))

    def _value(self, relation: Relation) -> str:
        # Now and then a value of another kind: what to copy is what was said, not what would be usual.
        kind = self.rng.choice(KINDS) if self.rng.random() < 0.1 else relation.value
        return draw_value(self.rng, kind, held_out=self.held_out)

    def _wordings(self, relation: Relation, kind: str) -> tuple[str, ...]:
        return relation.phrases(kind, held_out=self.held_out_phrases)

    def _join(self, told: list[str]) -> str:
        if len(told) == 1:
            return told[0]
        first, second = told[0].rstrip(".! "), told[1]
        if self.rng.random() < 0.5:
            return f"{first}, and {second[:1].lower() + second[1:] if second[:2] != 'I ' else second}"
        return f"{first}. {second}"

    def _acknowledge(self, fact: Fact, echo: float) -> str:
        if self.rng.random() < echo:
            return fact.fill(self.rng.choice([a for a in fact.relation.ack if "{v}" in a]))
        return self.rng.choice(self.phrases.generic_ack)


@dataclass(frozen=True)
class Batch:
    """Rows of dialogues. `weight` is each target's share of the loss, `value` marks the values of answers."""

    tokens_BT: Tensor
    target_BT: Tensor
    weight_BT: Tensor
    value_BT: Tensor


class DialogueData:
    """Batches of memory dialogues; batch n of a seed is always the same."""

    def __init__(self, tokenizer: Tokenizer, talk: Talk, seed: int) -> None:
        self.tokenizer, self.talk, self.seed = tokenizer, talk, seed

    def batch(self, step: int, stage: Stage, **held_out: bool) -> Batch:
        """The batch of one training step; `held_out*` as for `Dialogue`."""
        rows = [self._row(random.Random(f"{self.seed}:{step}:{row}"), stage, held_out) for row in range(stage.num_rows)]
        tokens = torch.tensor([row[0] for row in rows])
        weights = torch.tensor([row[1] for row in rows])
        values = torch.tensor([row[2] for row in rows])
        return Batch(tokens[:, :-1], tokens[:, 1:], weights[:, 1:], values[:, 1:])

    def _row(
        self, rng: random.Random, stage: Stage, held_out: dict[str, bool]
    ) -> tuple[list[int], list[float], list[bool]]:
        ids: list[int] = []
        weights: list[float] = []
        values: list[bool] = []
        size = stage.num_tokens + 1
        for line in self._dialogue(rng, held_out).lines(stage):
            for part, weight, is_value in self._parts(line):
                ids += part
                weights += [weight] * len(part)
                values += [is_value] * len(part)
            if len(ids) >= size:
                break
        return ids[:size], weights[:size], values[:size]

    def _dialogue(self, rng: random.Random, held_out: dict[str, bool]) -> Dialogue:
        values, phrases, relations = (
            held_out.get(name, False) for name in ("held_out", "held_out_phrases", "held_out_relations")
        )
        return Dialogue(rng, self.talk, values, phrases, relations)

    def _parts(self, line: Line) -> Iterator[tuple[list[int], float, bool]]:
        """(ids, weight of each as a target, whether it is an answer's value) of one turn."""
        encode = self.tokenizer.encode
        yield [USER], 0.0, False
        yield encode(line.message), MESSAGE_WEIGHT, False
        if line.reply is None:
            yield [END], 0.0, False
            return
        yield [ASSISTANT], 0.0, False
        weight = TALK_WEIGHT if line.is_talk else REPLY_WEIGHT
        ids = encode(line.reply)
        begin, end = _span(ids, encode(line.value) if line.value else [])
        yield ids[:begin], weight, False
        yield ids[begin:end], VALUE_WEIGHT, True
        yield ids[end:], weight, False
        yield [END], weight, False


def _span(ids: list[int], part: list[int]) -> tuple[int, int]:
    """Where `part` stands in `ids`; an empty span at the end where it does not."""
    for start in range(len(ids) - len(part) + 1 if part else 0):
        if ids[start : start + len(part)] == part:
            return start, start + len(part)
    return len(ids), len(ids)


def tokenizer_texts(talk: Talk, seed: int, num_dialogues: int = 4000) -> Iterator[str]:
    """Text to train the tokenizer on: dialogues of all corpora, prose, and generated memory dialogues."""
    rng = random.Random(seed)
    stage = Stage(0, 0, 6, 0.0)
    for _ in range(num_dialogues):
        lines = Dialogue(rng, talk).lines(stage)
        for _ in range(8):
            line = next(lines)
            yield line.message
            yield line.reply or ""
    for runs in talk.runs.values():
        for run in rng.sample(runs, min(len(runs), 6000)):
            for message, reply in run:
                yield message
                yield reply
    yield from rng.sample(talk.paragraphs, min(len(talk.paragraphs), 6000))


__all__ = ["PAD", "Batch", "Dialogue", "DialogueData", "Fact", "Line", "Stage", "tokenizer_texts"]

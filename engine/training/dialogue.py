"""One memory dialogue, turn by turn: told facts, other talk, corrections, questions.

It teaches how to remember, not what: values are drawn anew for every dialogue (`values.py`), relations come from
`relations.py` and, without end, from `open_relations.py`. Knows text; no tokens and no model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.training.open_relations import OpenRelations, load_open_words
from engine.training.relations import Relation, load_relations, load_small_talk
from engine.training.talk import Talk
from engine.training.values import KINDS, draw_value

# Of a dressed dialogue: sentences with something around them, without capitals, with a sentence of other talk.
WRAP_SHARE, LOWER_SHARE, ASIDE_SHARE = 0.3, 0.1, 0.06
ASIDE_CHARACTERS = 80

_A_VALUE = re.compile(r"\b(a) (?=\{v\})", re.IGNORECASE)

# Questions about what was never told, among all questions; and how fast told facts make room for others: a dialogue
# draws one of these, so some facts are asked for a long time.
UNKNOWN_SHARE = 0.25
DROPPED_SHARES = (0.02, 0.15)

# Of questions about what was never told, those that resemble something told, and how many draws a resemblance is
# worth; of changes, those that are told like anything new; of facts about people, those about one spoken of before.
NEAR_SHARE, NEAR_DRAWS, RETOLD_SHARE, AGAIN_SHARE = 0.6, 12, 0.4, 0.35

# Turns after which the user wants to know what could be asked about them: those that told something, and others.
NEWS_TO_ASK_SHARE, TO_ASK_SHARE = 0.25, 0.03


@dataclass(frozen=True)
class Stage:
    """How the dialogues of one part of the curriculum look.

    Attributes:
        num_tokens: length of a row.
        num_rows: rows of a batch.
        most_facts: upper bound of facts a dialogue holds at a time.
        talk: highest share of turns that are other talk; each dialogue draws its own below it.
        segments: steps over which the same dialogues go on, their memory carried from row to row.
    """

    num_tokens: int
    num_rows: int
    most_facts: int
    talk: float
    segments: int = 1


@dataclass(frozen=True)
class Line:
    """One turn of a generated dialogue; `value` is what a right answer contains (answers only).

    `is_unknown`: the reply says that this was never told.
    """

    message: str
    reply: str | None
    value: str | None = None
    is_talk: bool = False
    is_unknown: bool = False


@dataclass
class Fact:
    """Something the user has told."""

    relation: Relation
    entity: str | None
    value: str

    def fill(self, template: str) -> str:
        """The template with this fact's value and entity in place; a value stays as it was told."""
        text = _A_VALUE.sub(r"\1n ", template) if self.value[0] in "aeiouAEIOU" else template
        text = text.replace("{v}", self.value)
        text = text if self.entity is None else text.replace("{e}", self.entity)
        return text[:1].upper() + text[1:] if template.startswith("{e}") else text


@dataclass
class Dialogue:
    """Writes one dialogue, turn by turn: `facts` are those it may ask for, `news` those that the last turn told.

    `held_out` takes values from evaluation's side; `held_out_phrases` and `held_out_relations` do so for wordings
    and relations. `open_share` of the facts are of open relations; `dressed` varies what is around the sentences.
    """

    rng: random.Random
    talk: Talk
    held_out: bool = False
    held_out_phrases: bool = False
    held_out_relations: bool = False
    open_share: float = 0.0
    dressed: bool = False
    facts: list[Fact] = field(default_factory=list)
    news: list[Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.relations = [r for r in load_relations() if r.held_out == self.held_out_relations]
        self.open_relations = OpenRelations(self.rng, held_out=self.held_out_relations)
        self.phrases, self.wraps = load_small_talk(), load_open_words().wraps
        # Everything ever told, also what is asked no more: it is never something unknown.
        self.ever_told = {(fact.relation.topic, fact.entity) for fact in self.facts}

    def lines(self, stage: Stage) -> Iterator[Line]:
        """Turns without end."""
        rng = self.rng
        talk = rng.random() * stage.talk
        most = rng.randint(2, stage.most_facts)
        echo = rng.choice((0.3, 0.8, 1.0))
        dropped = rng.choice(DROPPED_SHARES)
        while True:
            self.news = []
            roll = rng.random()
            if roll < talk:
                for message, reply in self.talk.run(rng, rng.randint(1, 3)):
                    yield Line(message, reply, is_talk=True)
            elif roll < talk + 0.01:
                yield Line(self.talk.paragraph(rng), None, is_talk=True)
            elif len(self.facts) < 1 or (len(self.facts) < most and rng.random() < 0.5):
                yield self.tell(echo)
            elif rng.random() < UNKNOWN_SHARE:
                yield self.ask_unknown()
            elif rng.random() < 0.15:
                yield self.change(echo)
            else:
                yield self.ask(rng.choice(self.facts))
            if rng.random() < (NEWS_TO_ASK_SHARE if self.news else TO_ASK_SHARE):
                yield self.to_ask()
            if len(self.facts) >= most and rng.random() < dropped:
                self.facts.pop(0)

    def new_fact(self) -> Fact:
        """A fact nobody has told yet in this dialogue."""
        rng = self.rng
        told = {(fact.relation.topic, fact.entity) for fact in self.facts}
        while True:
            relation = self.open_relations.draw() if rng.random() < self.open_share else rng.choice(self.relations)
            entity = relation.entity and self._entity(relation.entity)
            if (relation.topic, entity) not in told:
                return Fact(relation, entity, self._value(relation))

    def _entity(self, kind: str) -> str:
        """Whom a fact is about: somebody new, or one of whom something else was told."""
        known = [fact.entity for fact in self.facts if fact.entity is not None and fact.relation.entity == kind]
        if known and self.rng.random() < AGAIN_SHARE:
            return self.rng.choice(known)
        return draw_value(self.rng, kind, held_out=self.held_out)

    def tell(self, echo: float) -> Line:
        """A new fact, or two in one message."""
        facts = [self.new_fact()]
        self.facts.append(facts[0])
        if self.rng.random() < 0.15:
            facts.append(self.new_fact())
            self.facts.append(facts[1])
        self.news = facts
        self.ever_told |= {(fact.relation.topic, fact.entity) for fact in facts}
        told = [fact.fill(self.rng.choice(self._wordings(fact.relation, "tell"))) for fact in facts]
        return Line(self._dress(self._join(told, facts), "tell", facts), self._acknowledge(facts[-1], echo))

    def change(self, echo: float) -> Line:
        """A told fact's new value."""
        fact = self.rng.choice(self.facts)
        fact.value = self._value(fact.relation)
        self.news = [fact]
        retold = self.rng.random() < RETOLD_SHARE
        wordings = self._wordings(fact.relation, "tell") if retold else fact.relation.change
        said = fact.fill(self.rng.choice(wordings))
        return Line(self._dress(said, "change", [fact]), self._acknowledge(fact, echo))

    def ask(self, fact: Fact) -> Line:
        """A question about a told fact, and its answer."""
        question = self._question(fact)
        frames = self.phrases.generic_answer if self.rng.random() < 0.05 else fact.relation.answer
        return Line(question, fact.fill(self.rng.choice(frames)), fact.value)

    def ask_unknown(self) -> Line:
        """A question about something never told, often one that resembles something told."""
        fact = self._untold()
        if self.rng.random() < NEAR_SHARE:
            drawn = [fact, *(self._untold() for _ in range(NEAR_DRAWS))]
            fact = max(drawn, key=self._nearness)
        return Line(self._question(fact), self._unknown(fact), is_unknown=True)

    def to_ask(self) -> Line:
        """What could be asked about the turn before, and a question that what it told answers."""
        message = self.rng.choice(self.phrases.to_ask)
        if not self.news:
            return Line(message, self.rng.choice(self.phrases.nothing_to_ask))
        fact = self.rng.choice(self.news)
        return Line(message, fact.fill(self.rng.choice(self._wordings(fact.relation, "ask"))))

    def _untold(self) -> Fact:
        fact = self.new_fact()
        while (fact.relation.topic, fact.entity) in self.ever_told:
            fact = self.new_fact()
        return fact

    def _nearness(self, fact: Fact) -> int:
        """How much a fact resembles those told: of the same relation, the same person, the same kind of value."""
        others = self.facts
        same_relation = any(fact.relation.topic == other.relation.topic for other in others)
        same_person = fact.entity is not None and any(fact.entity == other.entity for other in others)
        same_kind = any(fact.relation.value == other.relation.value for other in others)
        return 4 * same_relation + 2 * same_person + same_kind

    def _unknown(self, fact: Fact) -> str:
        """That it was not told; of an open relation sometimes what was not."""
        asked = fact.relation.asked
        if asked is not None and self.rng.random() < 0.4:
            return self.rng.choice(self.phrases.unknown_about).replace("{np}", asked)
        return self.rng.choice(self.phrases.unknown)

    def _value(self, relation: Relation) -> str:
        # Now and then a value of another kind: what to copy is what was said, not what would be usual.
        kind = self.rng.choice(KINDS) if self.rng.random() < 0.1 else relation.value
        return draw_value(self.rng, kind, held_out=self.held_out)

    def _question(self, fact: Fact) -> str:
        question = fact.fill(self.rng.choice(self._wordings(fact.relation, "ask")))
        if self.rng.random() < 0.1:
            question = question[:1].lower() + question[1:].rstrip("?")
        return self._dress(question, "ask", [])

    def _dress(self, text: str, kind: str, facts: list[Fact]) -> str:
        """Puts something before or behind a sentence, or takes its capitals away; values stay as they are."""
        rng = self.rng
        if not self.dressed:
            return text
        if rng.random() < LOWER_SHARE:
            text = _lower_but(text, [fact.value for fact in facts])
        before, after = ("before_ask", "after_ask") if kind == "ask" else ("before_tell", "after_tell")
        if kind != "change" and rng.random() < WRAP_SHARE:
            wrap = rng.choice(self.wraps[before])
            keeps = wrap.rstrip()[-1] in ".!?" or _keeps_capital(text, facts)
            text = wrap + (text if keeps else text[:1].lower() + text[1:])
        if rng.random() < WRAP_SHARE / 2:
            text += rng.choice(self.wraps[after])
        if kind != "ask" and rng.random() < ASIDE_SHARE:
            aside = self.talk.run(rng, 1)[0][0]
            if len(aside) <= ASIDE_CHARACTERS and not aside.endswith("?"):
                text = f"{aside} {text}" if rng.random() < 0.5 else f"{text} {aside}"
        return text

    def _wordings(self, relation: Relation, kind: str) -> tuple[str, ...]:
        return relation.phrases(kind, held_out=self.held_out_phrases)

    def _join(self, told: list[str], facts: list[Fact]) -> str:
        if len(told) == 1:
            return told[0]
        first, second = told[0].rstrip(".! "), told[1]
        if self.rng.random() < 0.5:
            return f"{first}, and {second if _keeps_capital(second, facts) else second[:1].lower() + second[1:]}"
        return f"{first}. {second}"

    def _acknowledge(self, fact: Fact, echo: float) -> str:
        if self.rng.random() < echo:
            return fact.fill(self.rng.choice([a for a in fact.relation.ack if "{v}" in a]))
        return self.rng.choice(self.phrases.generic_ack)


def _keeps_capital(text: str, facts: list[Fact]) -> bool:
    """Whether a sentence begins with "I" or with a value, also where it does not begin a message."""
    return text[:2] in ("I ", "I'") or any(text.startswith(fact.value) for fact in facts)


def _lower_but(text: str, kept: list[str]) -> str:
    """`text` in small letters, the `kept` pieces as they are."""
    lowered = text.lower()
    for piece in kept:
        lowered = lowered.replace(piece.lower(), piece)
    return lowered

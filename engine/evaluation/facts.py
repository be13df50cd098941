"""Facts told in conversations and asked for again: what is said when, what is asked, and what counts as right.

Told facts, facts that change, and facts that are asked for but were never told. Plays on `conversation.py` with the
facts of `telling.py`; knows no tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.config import CMS_MEDIUM
from engine.evaluation.conversation import Conversations, Exchange, Habits
from engine.evaluation.examples import Model
from engine.evaluation.recall import Asked, names, says_unknown
from engine.evaluation.telling import Telling, changed, tellings, untold
from engine.tokenizer import Tokenizer
from engine.training.talk import Talk

GAPS = (1, 5, 20, 100, 300, 1000)
CHANGED_GAPS = (1, 20, 100)
TURNS_BEFORE_CHANGE = 10
CHANGED, UNKNOWN, UNKNOWN_GAP = "changed", "unknown", 20


@dataclass(frozen=True)
class FactsPlan:
    """What is told and asked.

    Attributes:
        sources: where facts come from, of `telling.SOURCES`; each has `num_sessions` sessions, and as many share the
            facts that change.
        gaps: other turns between the last fact told and the questions, rising.
        worker_turns: turns of a session that the worker takes in (`Habits`).
    """

    sources: tuple[str, ...] = ("everyday", "open", "training")
    num_sessions: int = 10
    facts_per_session: int = 5
    gaps: tuple[int, ...] = GAPS
    worker_turns: int = 32

    @property
    def changed_gaps(self) -> tuple[int, ...]:
        """Other turns after which changed facts are asked for."""
        return tuple(gap for gap in CHANGED_GAPS if gap <= self.gaps[-1])

    @property
    def unknown_gap(self) -> int:
        """Other turns after which is asked what was never told."""
        return max((gap for gap in self.gaps if gap <= UNKNOWN_GAP), default=self.gaps[0])

    @property
    def num_turns(self) -> int:
        """Turns of a run; those of sessions that are in step count once."""
        told = 2 * self.facts_per_session + self.gaps[-1] - 1
        return told + 4 * self.facts_per_session + TURNS_BEFORE_CHANGE + self.changed_gaps[-1] - 1


@dataclass(frozen=True)
class Answer:
    """A question with its reply, the condition it counts for, and the value that is no longer true."""

    condition: str
    asked: Asked
    old: str | None = None

    @property
    def right(self) -> bool:
        """Whether the reply is what it should be: the value; the new one without the old; or that it is not known."""
        if self.condition == UNKNOWN:
            return self.not_known
        return self.asked.recalled and not self.outdated

    @property
    def not_known(self) -> bool:
        """Whether the reply says that it does not know, and names nothing."""
        return says_unknown(self.asked.reply, self.asked.question)

    @property
    def outdated(self) -> bool:
        """Whether the reply names the value that is no longer true."""
        return self.old is not None and names(self.asked.reply, self.old)


def play(
    model: Model,
    tokenizer: Tokenizer,
    plan: FactsPlan,
    off: frozenset[str],
    seed: int,
    tick: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """Every question of one run with these levels off; `tick` is called after every turn.

    Facts, other talk and questions of told facts are those of `hope eval recall`; here other talk's replies are given.
    """
    habits, talk = Habits(off, 0 if CMS_MEDIUM in off else plan.worker_turns), Talk(None)
    numbers, count = range(plan.num_sessions), plan.facts_per_session

    def stage(scripts: Sequence[Script]) -> Stage:
        return Stage(Conversations(model, tokenizer, len(scripts), habits), scripts, tick)

    kept = [Script(f"{seed}:{number}", source, count, talk) for source in plan.sources for number in numbers]
    shared = [(f"{CHANGED}:{seed}:{number}", plan.sources[number % len(plan.sources)]) for number in numbers]
    replaced = [Script(which, source, count, talk) for which, source in shared]
    return [*_kept(stage(kept), plan), *_replaced(stage(replaced), plan)]


def _kept(stage: Stage, plan: FactsPlan) -> Iterator[Answer]:
    """Facts that stay as they were told, and what was never told."""
    stage.tell()
    passed = 1
    for gap in plan.gaps:
        stage.chat(gap - passed)
        passed = gap
        for script, _, asked in stage.ask(gap, lambda script: script.told):
            yield Answer(f"{script.source} {gap}", asked)
        if gap == plan.unknown_gap:
            for _, _, asked in stage.ask(gap, lambda script: script.never):
                yield Answer(UNKNOWN, asked)


def _replaced(stage: Stage, plan: FactsPlan) -> Iterator[Answer]:
    """Facts that are told, and some turns later told again with another value."""
    stage.tell()
    stage.chat(TURNS_BEFORE_CHANGE)
    old = {script: script.change() for script in stage.scripts}
    stage.tell()
    passed = 1
    for gap in plan.changed_gaps:
        stage.chat(gap - passed)
        passed = gap
        for script, number, asked in stage.ask(gap, lambda script: script.told):
            yield Answer(f"{CHANGED} {gap}", asked, old[script][number])


class Script:
    """What one session says, drawn in the order in which `hope eval recall` draws it.

    Attributes:
        told: its facts, as they were last told.
        never: facts of the same source and of other topics, which are not told.
    """

    def __init__(self, seed: str, source: str, num_facts: int, talk: Talk) -> None:
        self.rng, self.source, self._talk = random.Random(seed), source, talk
        self.told = tellings(self.rng, num_facts, source, held_out_phrases=False, talk=talk)
        # The same draws once more, and further: what would have been told next.
        further = tellings(random.Random(seed), 3 * num_facts, source, held_out_phrases=False, talk=talk)
        self.never = untold(self.told, further[num_facts:], num_facts)

    def other(self) -> Exchange:
        """A turn that tells nothing."""
        return Exchange(*self._talk.run(self.rng, 1)[0])

    def change(self) -> list[str]:
        """Gives every fact another value; returns the old ones."""
        old = [one.value for one in self.told]
        self.told = [changed(self.rng, one) for one in self.told]
        return old


class Stage:
    """Scripts on their sessions, all in step."""

    def __init__(self, sessions: Conversations, scripts: Sequence[Script], tick: Callable[[], object]) -> None:
        self.sessions, self.scripts, self._tick = sessions, scripts, tick

    def tell(self) -> None:
        """Every fact, with a turn of other talk behind it. The model answers what it is told."""
        for number in range(len(self.scripts[0].told)):
            self._turn([Exchange(script.told[number].sentence) for script in self.scripts])
            self.chat(1)

    def chat(self, num_turns: int) -> None:
        """So many turns of other talk, whose replies are given."""
        for _ in range(num_turns):
            self._turn([script.other() for script in self.scripts])

    def ask(self, gap: int, facts: Callable[[Script], list[Telling]]) -> Iterator[tuple[Script, int, Asked]]:
        """Asks for facts of every session: the script, which of its facts, and the reply."""
        put = [
            (at, number, fact, script.rng.choice(fact.questions))
            for at, script in enumerate(self.scripts)
            for number, fact in enumerate(facts(script))
        ]
        replies = self.sessions.ask([(at, question) for at, _, _, question in put])
        for (at, number, fact, question), reply in zip(put, replies, strict=True):
            yield self.scripts[at], number, Asked(gap, fact.sentence, question, fact.value, reply)

    def _turn(self, exchanges: Sequence[Exchange]) -> None:
        self.sessions.turn(exchanges)
        self._tick()

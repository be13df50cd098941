"""Rounds of consolidation: sessions are told new facts, their tenant is consolidated, fresh sessions are asked.

Runs whole turns through a real engine and store, and the worker's own consolidation. Knows no tables.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from engine.config import EngineSettings, StoreSettings
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import load_suite
from engine.consolidation.tenant import TenantConsolidation
from engine.core import DEFAULT_TENANT, Consolidation
from engine.engine import Engine
from engine.evaluation.recall import ask, names
from engine.evaluation.silent import SilentObserver
from engine.evaluation.telling import Telling, tellings
from engine.model.hope import Hope
from engine.tokenizer import Tokenizer
from engine.training.talk import Talk


@dataclass(frozen=True)
class RoundsPlan:
    """What is told, and how often.

    Attributes:
        num_rounds: of telling and consolidating.
        num_sessions: that contribute in a round, and one more that does not.
        facts_per_session: told in each, of different relations all of them.
        relations: where facts come from, one of `telling.SOURCES`.
    """

    num_rounds: int = 5
    num_sessions: int = 2
    facts_per_session: int = 2
    relations: str = "everyday"

    @property
    def num_facts(self) -> int:
        """Of all rounds, those of sessions that do not contribute included."""
        return self.num_rounds * (self.num_sessions + 1) * self.facts_per_session


@dataclass
class Course:
    """What came of it: shares of facts named, round by round.

    Attributes:
        in_session: by the sessions that were told, at once.
        before: by fresh sessions, before the round's consolidation.
        matrix: by fresh sessions after each round's consolidation, of its own and every earlier round.
        apart: facts of sessions that do not contribute, by fresh sessions at the end.
        consolidations: as they ended.
    """

    in_session: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    matrix: list[list[float]] = field(default_factory=list)
    apart: float = 0.0
    consolidations: list[Consolidation] = field(default_factory=list)

    @property
    def uptake(self) -> float:
        """Mean share of a round's facts that fresh sessions name right after it."""
        return _mean([row[-1] for row in self.matrix])

    @property
    def kept(self) -> float:
        """Mean share of all earlier rounds' facts that fresh sessions name at the end."""
        return _mean(self.matrix[-1][:-1])

    @property
    def retention(self) -> float:
        """What is kept of earlier rounds, over what was taken up of them."""
        taken_up = _mean([row[-1] for row in self.matrix[:-1]])
        return self.kept / taken_up if taken_up else 0.0

    @property
    def perplexity(self) -> float:
        """On the gate's fixed text at the end, over that at the beginning; 1 where nothing was learned."""
        gates = [one.gate["perplexity"] for one in self.consolidations if "perplexity" in one.gate]
        accepted = [one.gate["perplexity"].after for one in self.consolidations if one.status == "accepted"]
        return accepted[-1] / gates[0].before if accepted else 1.0


async def play(
    model: Hope,
    tokenizer: Tokenizer,
    plan: RoundsPlan,
    policy: GenerationPolicy | None,
    seed: int,
    tick: Callable[[], object],
) -> Course:
    """All rounds, over an engine and an embedded store of their own.

    Args:
        policy: of the consolidations; None for none.
        tick: called after every round.
    """
    rng, talk, course = random.Random(seed), Talk(None), Course()
    # Sessions are taken in by their names: drawn at random, no two runs of a seed would dream alike.
    sessions = (f"session-{number:05d}" for number in count())
    facts = tellings(rng, plan.num_facts, plan.relations, held_out_phrases=False, talk=talk)
    told: list[list[Telling]] = []
    apart: list[Telling] = []
    with tempfile.TemporaryDirectory(prefix="hope-eval-") as folder:
        store = StoreSettings(data_dir=Path(folder))
        engine = await Engine.open(EngineSettings(), store, SilentObserver(), (model, tokenizer))
        worker = policy and TenantConsolidation(model, tokenizer, engine.store, SilentObserver(), policy, load_suite())
        try:
            for _ in range(plan.num_rounds):
                named: list[bool] = []
                told.append([])
                for number in range(plan.num_sessions + 1):
                    contributes = number < plan.num_sessions
                    own = [facts.pop() for _ in range(plan.facts_per_session)]
                    (told[-1] if contributes else apart).extend(own)
                    named += await _tell(engine, next(sessions), own, talk, rng, contribute=contributes)
                course.in_session.append(_mean(named))
                course.before.append(await _fresh(engine, next(sessions), told[-1]))
                if worker:
                    asked = await engine.store.generations.open(DEFAULT_TENANT)
                    course.consolidations.append(await worker.run(DEFAULT_TENANT, asked, asyncio.Event()))
                course.matrix.append([await _fresh(engine, next(sessions), earlier) for earlier in told])
                tick()
            course.apart = await _fresh(engine, next(sessions), apart)
        finally:
            if worker:
                worker.close()
            await engine.close()
    return course


async def _tell(
    engine: Engine, name: str, facts: Sequence[Telling], talk: Talk, rng: random.Random, *, contribute: bool
) -> list[bool]:
    """A new session is told these among other talk; which of them it names when asked."""
    session = await engine.create_session(DEFAULT_TENANT, name, {}, contribute)
    for fact in facts:
        await ask(engine, session.id, fact.sentence)
        await ask(engine, session.id, talk.run(rng, 1)[0][0])
    replies = [(await ask(engine, session.id, fact.questions[0], learn=False)).reply for fact in facts]
    return [names(reply, fact.value) for reply, fact in zip(replies, facts, strict=True)]


async def _fresh(engine: Engine, name: str, facts: Sequence[Telling]) -> float:
    """The share of these that a session names that was told nothing."""
    session = await engine.create_session(DEFAULT_TENANT, name, {}, False)
    turns = await asyncio.gather(*(ask(engine, session.id, fact.questions[0], learn=False) for fact in facts))
    return _mean([names(turn.reply, fact.value) for turn, fact in zip(turns, facts, strict=True)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

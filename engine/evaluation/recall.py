"""Recall over a conversation: facts told among other talk, asked 1, 5 and 20 other turns later.

Runs whole turns through a real engine and store, as a user's would. Values were never in training; where
relations and wordings come from, `telling.py` says. Knows no tables and no plots.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engine.config import EngineSettings, LevelConfig, StoreSettings
from engine.core import DEFAULT_TENANT, Turn, TurnCompleted, TurnRequest
from engine.engine import Engine
from engine.evaluation.silent import SilentObserver
from engine.evaluation.telling import tellings
from engine.model.hope import Hope
from engine.model.learning import level_named
from engine.model.weights import load_checkpoint
from engine.training.relations import load_small_talk
from engine.training.talk import Talk

GAPS = (1, 5, 20)

# How a reply says that it does not know: a denial and a word of knowing or telling in one sentence, or a request to
# be told.
DENIAL = re.compile(r"\b(?:not|never|no|nothing|can't|don't|didn't|haven't|hasn't|wasn't)\b")
KNOWING = re.compile(
    r"\b(?:know|knew|learned|told|tell|telling|said|say|mention|mentioned|mentioning|shared|heard|hearing|talk|talked"
    r"|come up|remember|recall|memory|mind|idea|found|find)\b"
)
UNTOLD = re.compile(
    r"\b(?:(?:have to|could you|will you|please|you) tell me|tell me first|unknown to me|have forgotten|guess"
    r"|guessing)\b"
)


@dataclass(frozen=True)
class RecallPlan:
    """What to tell and how to ask.

    Attributes:
        num_sessions, facts_per_session: how much is told.
        gaps: other turns between the last fact told and the questions.
        relations: where the facts come from, one of `telling.SOURCES`.
        held_out_phrases: wordings that training never saw.
        rates: learning rates of CMS levels by name, in place of the checkpoint's; 0 switches a level off.
    """

    num_sessions: int = 10
    facts_per_session: int = 5
    gaps: tuple[int, ...] = GAPS
    relations: str = "training"
    held_out_phrases: bool = False
    rates: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Asked:
    """One question and its reply."""

    gap: int
    told: str
    question: str
    value: str
    reply: str

    @property
    def recalled(self) -> bool:
        """Whether the reply names the value."""
        return names(self.reply, self.value)


def names(reply: str, value: str) -> bool:
    """Whether a value appears in a reply, as words of its own: "15" does not name "5"."""
    return re.search(rf"(?<!\w){re.escape(value.lower())}(?!\w)", reply.lower()) is not None


def says_unknown(reply: str, question: str) -> bool:
    """Whether a reply to a question says that it does not know, and nothing else.

    A sentence of it denies knowing or being told, or asks to be told; and every word of it is one of training's
    phrases for that or of the question: whatever else it names could be a value, so it counts as one.
    """
    sentences = re.split(r"[.?!;]", _plain(reply))
    denies = any((DENIAL.search(one) and KNOWING.search(one)) or UNTOLD.search(one) for one in sentences)
    return denies and _words(reply) <= _words_of_not_knowing() | _words(question)


@cache
def _words_of_not_knowing() -> frozenset[str]:
    phrases = (*load_small_talk().unknown, *load_small_talk().unknown_about)
    return frozenset({"your"}.union(*(_words(phrase.replace("{np}", "")) for phrase in phrases)))


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+(?:'[^\W_]+)*", _plain(text)))


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")


def with_rates(model: Hope, rates: Sequence[tuple[str, float]]) -> Hope:
    """The model with other learning rates of its CMS levels; InvalidRequest where it has no such level."""
    wanted = dict(rates)
    for name in wanted:
        level_named(model, name)

    def changed(level: LevelConfig) -> LevelConfig:
        return dataclasses.replace(level, learning_rate=wanted.get(level.name, level.learning_rate))

    model.config = dataclasses.replace(model.config, levels=tuple(changed(one) for one in model.config.levels))
    return model


async def ask(engine: Engine, session_id: str, message: str, *, learn: bool = True) -> Turn:
    """One turn at temperature 0."""
    request = TurnRequest(message, learn=learn, temperature=0.0, max_tokens=48, timeout_s=600.0)
    async with contextlib.aclosing(engine.turn(DEFAULT_TENANT, session_id, request)) as events:
        async for event in events:
            if isinstance(event, TurnCompleted):
                return event.turn
    raise AssertionError("a turn ends with TurnCompleted or raises")


async def measure_recall(plan: RecallPlan, seed: int, checkpoint: Path | None = None) -> list[Asked]:
    """Every question of one run, over its own engine and an embedded store in a temporary folder."""
    model, tokenizer = load_checkpoint(checkpoint)
    loaded = with_rates(model, plan.rates), tokenizer
    settings = EngineSettings(checkpoint=checkpoint)
    with tempfile.TemporaryDirectory(prefix="hope-eval-") as folder:
        store = StoreSettings(data_dir=Path(folder))
        engine = await Engine.open(settings, store, SilentObserver(), loaded)
        try:
            runs = [_session(engine, plan, f"{seed}:{number}") for number in range(plan.num_sessions)]
            return [asked for run in await asyncio.gather(*runs) for asked in run]
        finally:
            await engine.close()


async def _session(engine: Engine, plan: RecallPlan, seed: str) -> list[Asked]:
    rng = random.Random(seed)
    talk = Talk(None)
    session = await engine.create_session(DEFAULT_TENANT, None, {}, False)
    told = tellings(rng, plan.facts_per_session, plan.relations, held_out_phrases=plan.held_out_phrases, talk=talk)
    for fact in told:
        await ask(engine, session.id, fact.sentence)
        await ask(engine, session.id, talk.run(rng, 1)[0][0])
    asked: list[Asked] = []
    passed = 1
    for gap in plan.gaps:
        for _ in range(gap - passed):
            await ask(engine, session.id, talk.run(rng, 1)[0][0])
        passed = max(gap, passed)
        for fact in told:
            question = rng.choice(fact.questions)
            turn = await ask(engine, session.id, question, learn=False)
            asked.append(Asked(gap, fact.sentence, question, fact.value, turn.reply))
    return asked

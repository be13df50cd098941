"""Candidates for a generation: what a tenant's sessions told is dreamt of once, and any choice of them distilled.

Knows no store: turns in, weights and the gate's figures out.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch

from engine.config import LevelConfig
from engine.consolidation.background import Background
from engine.consolidation.distill import Distilled, Material, draw, spring_on, step, with_step_state, without_step_state
from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Dream, Example, batches, examples
from engine.consolidation.gate import Examination, Gate, norm
from engine.consolidation.hearing import made_up
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.sources import Source
from engine.consolidation.suite import Suite
from engine.core import GateCheck
from engine.model.hope import Hope, Memory
from engine.model.shared import TENANT, pack_shared, unpack_shared
from engine.observer import Observer
from engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class Dreamt:
    """What came of dreaming.

    Attributes:
        parent: what is known before (batch size 1).
        told: examples of what each session told, by its hash; a session that told nothing is not there.
        rehearsal, calm: what is to be known still, and, by kind, what is to stay as it is.
        asked: calm questions for the gate.
        dreamer: answers the gate's probes.
        seed: of everything that is drawn later.
    """

    parent: Memory
    told: Mapping[str, Sequence[Example]]
    rehearsal: Sequence[Example]
    calm: Sequence[Sequence[Example]]
    asked: Sequence[Dream]
    dreamer: Dreamer
    seed: int


@dataclass(frozen=True)
class Candidate:
    """A copy of the parent that has learned.

    Attributes:
        shared: what it knows (batch size 1), rounded as it is stored.
        losses: of the first step and of the last.
        dreams: what it learned, by session.
        gate: how it compares with its parent.
    """

    shared: Memory
    losses: tuple[float, float]
    dreams: Mapping[str, Sequence[Dream]]
    gate: dict[str, GateCheck]


class Candidates:
    """Makes candidates with one model.

    Args:
        model, tokenizer: the ones the sessions' memories grew in.
        observer: told of every step.
        policy: how much, how hard, and the limits.
        suite: how dreams begin, and what must stay.
        background: where the work is done.
    """

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        observer: Observer,
        policy: GenerationPolicy,
        suite: Suite,
        background: Background,
    ) -> None:
        self._model, self._tokenizer, self._observer = model, tokenizer, observer
        self._policy, self._suite, self._background = policy, suite, background
        self.level: LevelConfig | None = next((one for one in model.config.levels if one.scope == TENANT), None)

    async def dream(
        self, parent: Memory, sources: Sequence[Source], rehearsed: Sequence[Dream], seed: int, halt: asyncio.Event
    ) -> Dreamt | None:
        """What these sessions told; None where no turn told anything.

        Raises:
            Stopped: `halt` was set.
        """
        generator = torch.Generator().manual_seed(seed)
        dreamer = Dreamer(self._model, self._tokenizer, self._suite, self._policy, parent)
        told: dict[str, list[Example]] = {}
        for source in sources:
            by_question: dict[tuple[int, ...], Example] = {}
            for turn in source.turns:
                work = partial(dreamer.of_turn, turn, source.name, generator)
                dreamt = await self._background.compute(work, halt)
                # A later turn's reply to the same question is the one that holds.
                by_question |= {example.dream.question: example for example in dreamt}
            if by_question:
                told[source.name] = list(by_question.values())
        if not told:
            return None
        known = {one.dream.question for found in told.values() for one in found} | {one.question for one in rehearsed}
        keep = partial(dreamer.to_keep, self._suite.calm, parent, known, generator)
        kept = await self._background.compute(keep, halt)
        rehearsal = await self._background.compute(partial(self._answers, dreamer.fresh, rehearsed), halt)
        calm, quiet = [
            await self._background.compute(partial(self._answers, dreamer.fresh, kind), halt)
            for kind in (kept.calm, kept.quiet)
        ]
        hearing = partial(made_up, self._model, dreamer, self._policy, generator)
        heard = await self._background.compute(hearing, halt)
        # Two parts for small talk, and for what must still be heard: with one, sessions grow deaf in a few lessons.
        kinds = [calm, calm, quiet, dreamer.otherwise, heard, heard]
        return Dreamt(parent, told, rehearsal, kinds, kept.asked, dreamer, seed)

    async def make(self, level: LevelConfig, dreamt: Dreamt, names: Collection[str], halt: asyncio.Event) -> Candidate:
        """A candidate that learned from these sessions alone, at least one of which told something.

        Raises:
            Stopped: `halt` was set.
        """
        told = {name: found for name, found in dreamt.told.items() if name in names}
        rng = random.Random(dreamt.seed)
        learnt, held_out = _split(told, self._policy.held_out, rng)
        material = Material(learnt, dreamt.rehearsal, dreamt.calm)
        shared, losses = await self._distil(level, dreamt.parent, material, rng, halt)
        gate = Gate(self._model, self._tokenizer, self._suite, self._policy, dreamt.dreamer)
        rehearsed = [one.dream for one in dreamt.rehearsal]
        learned = [one.dream for found in told.values() for one in found]
        examination = Examination(held_out, rehearsed, dreamt.asked, dreamt.dreamer.heard, learned)
        checks = await self._background.compute(partial(gate.examine, dreamt.parent, shared, examination), halt)
        return Candidate(shared, losses, {name: [one.dream for one in found] for name, found in told.items()}, checks)

    async def _distil(
        self, level: LevelConfig, start: Memory, material: Material, rng: random.Random, halt: asyncio.Event
    ) -> tuple[Memory, tuple[float, float]]:
        """All steps, with a look around after each; what is known then, as stored, and the first and last loss."""
        policy = self._policy
        shared = with_step_state(self._model, level, start, policy)
        first, done = 0.0, Distilled(shared, 0.0, 0.0, 0)
        spring = None
        if policy.elastic_strength:
            matters = {id(one): one for one in chain(material.rehearsal, *material.calm)}
            work = partial(spring_on, self._model, level, start, list(matters.values()))
            spring = await self._background.compute(work, halt)
        for number in range(policy.num_steps):
            chosen, weights = draw(material, policy, rng)
            # A short way up, and down over the second half.
            rate = min(1.0, (number + 1) / 10, 2.0 * (policy.num_steps - number) / policy.num_steps)
            take = partial(step, self._model, level, done.shared, chosen, weights, policy, rate, spring=spring)
            done = await self._background.compute(take, halt)
            first = done.loss if number == 0 else first
            moved = "applied" if done.update_norm > 0 else "skipped"
            self._observer.memory_update(level.name, moved, done.update_norm)
            if done.num_unmoved:
                self._observer.memory_update(level.name, "rejected", 0.0)
        kept = without_step_state(level, done.shared)
        # What is examined is what is stored: rounded.
        rounded = unpack_shared(pack_shared(kept), self._model) if math.isfinite(norm(kept)) else kept
        return rounded, (first, done.loss)

    def _answers(self, fresh: Memory, dreams: Sequence[Dream]) -> list[Example]:
        """What the parent answers; rehearsal keeps that, not more."""
        return [one for batch in batches(dreams) for one in examples(self._model, fresh, batch)]


def _split(told: Mapping[str, Sequence[Example]], one_in: int, rng: random.Random) -> tuple[list[Example], list[Dream]]:
    """What is learned, and what is kept for the gate; where there is little, the gate asks what was learned."""
    learnt: list[Example] = []
    held_out: list[Dream] = []
    for found in told.values():
        shuffled = rng.sample(list(found), len(found))
        kept = len(shuffled) // one_in
        held_out += [example.dream for example in shuffled[:kept]]
        learnt += shuffled[kept:]
    return learnt, held_out or [example.dream for example in learnt]

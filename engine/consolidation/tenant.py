"""One consolidation of a tenant: gather, dream, distil, examine, publish; or say why not.

The candidate is a copy: serving goes on, and nothing is visible before the one script that publishes it. Knows no
line of work: what is handed to it is due.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from engine.config import LevelConfig
from engine.consolidation.distill import Distilled, Material, draw, step, with_step_state, without_step_state
from engine.consolidation.dreams import Dream, Dreamer, Example, batches, examples
from engine.consolidation.gate import Examination, Gate, norm, reason_of
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.rehearsal import crowded_out, read_dreams, write_dreams
from engine.consolidation.session import Stopped
from engine.consolidation.sources import Source, base_without, gather, lineage
from engine.consolidation.suite import Suite
from engine.core import Consolidation, GateCheck, Observer
from engine.following import Following
from engine.model.hope import Hope, Memory
from engine.model.shared import TENANT, initial_shared, pack_shared, unpack_shared
from engine.model.weights import fingerprint
from engine.sessions.generations import Asked, Generation, Publication, Standing
from engine.sessions.records import now_iso
from engine.sessions.snapshot import pack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer

logger = logging.getLogger("hope.worker")

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Ground:
    """What a candidate stands on: the store's standing, the generation it begins from, and what is taken in."""

    standing: Standing
    kept: dict[int, Generation]
    number: int
    base: Generation | None
    shared: Memory
    rehearsal: dict[str, str]
    sources: list[Source]

    @property
    def learned(self) -> dict[str, int]:
        """Turns taken in so far, by session hash."""
        return dict(self.base.learned) if self.base is not None else {}


@dataclass(frozen=True)
class _Candidate:
    shared: Memory
    losses: tuple[float, float]
    dreams: dict[str, list[Dream]]
    gate: dict[str, GateCheck]


class TenantConsolidation:
    """Consolidates tenants with one model, one step at a time on a thread of its own.

    Args:
        model, tokenizer: the ones the sessions' memories grew in.
        store: where sessions and generations are.
        observer: told how each ended.
        policy: how much, how hard, and the limits.
        suite: how dreams begin, and what must stay.
    """

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        store: SessionStore,
        observer: Observer,
        policy: GenerationPolicy,
        suite: Suite,
    ) -> None:
        self._model, self._tokenizer = model.requires_grad_(False), tokenizer
        self._store, self._generations, self._observer = store, store.generations, observer
        self._policy, self._suite = policy, suite
        self._fingerprint = fingerprint(model)
        self._following = Following(model, store, self._fingerprint, observer)
        self._level: LevelConfig | None = next((one for one in model.config.levels if one.scope == TENANT), None)
        self._thread = ThreadPoolExecutor(1, "hope-dreams", initializer=torch.set_num_threads, initargs=(1,))

    def close(self) -> None:
        """Ends the thread after its current step."""
        self._thread.shutdown(wait=True)

    async def run(self, tenant: str, asked: Asked, halt: asyncio.Event) -> Consolidation:
        """Sees one consolidation through.

        Raises:
            Stopped: `halt` was set; nothing was written.
            Conflict: what it was made of has changed; nothing was written.
            CorruptMemory, OtherModel, StoreUnavailable: as the store says.
        """
        begun = time.monotonic()
        ended = await self._attempt(tenant, asked, halt)
        self._observer.consolidation(f"generation_{ended.status}", time.monotonic() - begun, ended.num_turns)
        logger.info("consolidation of %d turns %s: %s", ended.num_turns, ended.status, ended.reason or "no objection")
        return ended

    async def fail(self, tenant: str, consolidation: Consolidation, reason: str) -> None:
        """Ends one that cannot be done."""
        ended = replace(consolidation, status="failed", reason=reason, finished_at=now_iso())
        await self._generations.close(tenant, ended)
        self._observer.consolidation("generation_failed", 0.0, 0)

    async def _attempt(self, tenant: str, asked: Asked, halt: asyncio.Event) -> Consolidation:
        ground = await self._ground(tenant, asked)
        turns = sum(len(source.turns) for source in ground.sources)
        ended = replace(
            asked.consolidation,
            from_generation=ground.number,
            num_sessions=len(ground.sources),
            num_turns=turns,
        )
        # Going back to before a session is itself a change, whatever there is to learn beside it.
        goes_back = ground.number != ground.standing.active
        if self._level is None or (not ground.sources and not goes_back):
            why = "this model has no level that sessions share" if self._level is None else "nothing new to take in"
            return await self._close(tenant, ended, "empty", why)
        candidate, passed = await self._make(self._level, ground, halt), ground.learned
        while candidate is None and ground.sources:
            # Small talk, however long, must not hide what was told after it.
            passed |= {source.name: source.mark for source in ground.sources}
            later = await gather(self._store, tenant, passed, self._policy, asked.without)
            ground = replace(ground, sources=later)
            candidate = await self._make(self._level, ground, halt)
        if candidate is None and not goes_back:
            return await self._close(tenant, ended, "empty", "the new turns told nothing that was not known")
        if candidate is None:
            candidate = _Candidate(ground.shared, (0.0, 0.0), {}, {})
        ended = replace(ended, gate=candidate.gate)
        reason = reason_of(candidate.gate)
        if reason is not None:
            return await self._close(tenant, ended, "rejected", reason)
        return await self._publish(tenant, ended, ground, candidate)

    async def _close(self, tenant: str, ended: Consolidation, status: str, reason: str) -> Consolidation:
        ended = replace(ended, status=status, reason=reason, finished_at=now_iso())
        await self._generations.close(tenant, ended)
        return ended

    async def _ground(self, tenant: str, asked: Asked) -> _Ground:
        standing = await self._generations.standing(tenant)
        kept = await self._generations.all(tenant)
        number, base = base_without(tenant, kept, standing.active, asked.without)
        shared = {**initial_shared(self._model), **await self._following.load(tenant, number)}
        ancestors = lineage(kept, number)
        rehearsal = {
            name: text
            for name, text in (await self._generations.rehearsal(tenant)).items()
            if int(name.partition(":")[0]) in ancestors
        }
        learned = base.learned if base is not None else {}
        sources = await gather(self._store, tenant, learned, self._policy, asked.without)
        return _Ground(standing, kept, number, base, shared, rehearsal, sources)

    async def _make(self, level: LevelConfig, ground: _Ground, halt: asyncio.Event) -> _Candidate | None:
        """A candidate and its gate's figures; None where no turn told anything."""
        policy, model = self._policy, self._model
        generator = torch.Generator().manual_seed(ground.standing.latest)
        rng = random.Random(ground.standing.latest)
        dreamer = Dreamer(model, self._tokenizer, self._suite.openers, policy, ground.shared)
        told: dict[str, list[Example]] = {}
        for source in ground.sources:
            by_question: dict[tuple[int, ...], Example] = {}
            for turn in source.turns:
                dreamt = await self._compute(partial(dreamer.of_turn, turn, source.name, generator), halt)
                # A later turn's reply to the same question is the one that holds.
                by_question |= {example.dream.question: example for example in dreamt}
            if by_question:
                told[source.name] = list(by_question.values())
        if not told:
            return None
        learnt, held_out = _split(told, policy.held_out, rng)
        rehearsed = [dream for text in ground.rehearsal.values() for dream in read_dreams(text)]
        known = {one.dream.question for found in told.values() for one in found} | {one.question for one in rehearsed}
        keep = partial(dreamer.to_keep, self._suite.calm, ground.shared, known, generator)
        kept, asked = await self._compute(keep, halt)
        material = Material(
            learnt,
            await self._compute(partial(self._answers, dreamer.fresh, rehearsed), halt),
            await self._compute(partial(self._answers, dreamer.fresh, kept), halt),
        )
        shared, losses = await self._distil(level, ground.shared, material, rng, halt)
        gate = Gate(model, self._tokenizer, self._suite, policy, dreamer)
        examination = Examination(held_out, rehearsed, asked)
        checks = await self._compute(partial(gate.examine, ground.shared, shared, examination), halt)
        dreams = {name: [example.dream for example in found] for name, found in told.items()}
        return _Candidate(shared, losses, dreams, checks)

    async def _distil(
        self, level: LevelConfig, start: Memory, material: Material, rng: random.Random, halt: asyncio.Event
    ) -> tuple[Memory, tuple[float, float]]:
        """All steps, with a look around after each; what is known then, as stored, and the first and last loss."""
        policy = self._policy
        shared = with_step_state(self._model, level, start, policy)
        first, done = 0.0, Distilled(shared, 0.0, 0.0, 0)
        for number in range(policy.num_steps):
            chosen, weights = draw(material, policy, rng)
            # A short way up, and down over the second half.
            rate = min(1.0, (number + 1) / 10, 2.0 * (policy.num_steps - number) / policy.num_steps)
            work = partial(step, self._model, level, done.shared, chosen, weights, policy, rate)
            done = await self._compute(work, halt)
            first = done.loss if number == 0 else first
            moved = "applied" if done.update_norm > 0 else "skipped"
            self._observer.memory_update(level.name, moved, done.update_norm)
            if done.num_unmoved:
                self._observer.memory_update(level.name, "rejected", 0.0)
        kept = without_step_state(level, done.shared)
        # What is examined is what is stored: rounded.
        rounded = unpack_shared(pack_shared(kept), self._model) if math.isfinite(norm(kept)) else kept
        return rounded, (first, done.loss)

    async def _publish(
        self, tenant: str, ended: Consolidation, ground: _Ground, candidate: _Candidate
    ) -> Consolidation:
        policy, number = self._policy, ground.standing.latest + 1
        taken = {source.name: len(source.turns) for source in ground.sources}
        generation = Generation(
            number=number,
            parent=ground.number,
            consolidation_id=ended.id,
            created_at=now_iso(),
            size_bytes=0,
            mark="",
            num_chunks=0,
            digest="",
            taken=taken,
            learned=ground.learned | {source.name: source.mark for source in ground.sources},
            notes={
                "steps": float(policy.num_steps),
                "first_loss": candidate.losses[0],
                "last_loss": candidate.losses[1],
                "norm": norm(candidate.shared),
            },
        )
        ended = replace(ended, status="accepted", to_generation=number, finished_at=generation.created_at)
        each = max(1, policy.most_rehearsal // max(1, len(candidate.dreams)))
        rehearsal = {name: write_dreams(dreams[-each:]) for name, dreams in candidate.dreams.items()}
        weights = await asyncio.to_thread(pack, pack_shared(candidate.shared), fingerprint=self._fingerprint)
        publication = Publication(
            consolidation=ended,
            standing=ground.standing,
            generation=generation,
            weights=weights,
            rehearsal=rehearsal,
            dropped=crowded_out(ground.rehearsal, 3 * policy.most_rehearsal),
            unwanted=_unwanted(ground, policy.keep_generations),
        )
        await self._generations.publish(tenant, publication)
        return ended

    def _answers(self, fresh: Memory, dreams: list[Dream]) -> list[Example]:
        """What the parent answers; rehearsal keeps that, not more."""
        return [one for batch in batches(dreams) for one in examples(self._model, fresh, batch)]

    async def _compute(self, work: Callable[[], Result], halt: asyncio.Event) -> Result:
        if halt.is_set():
            raise Stopped
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


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


def _unwanted(ground: _Ground, keep: int) -> list[Generation]:
    """The oldest generations beyond so many, but neither the active one nor the one begun from."""
    spared = {ground.number, ground.standing.active}
    others = sorted(number for number in ground.kept if number not in spared)
    beyond = len(ground.kept) + 1 - keep
    return [ground.kept[number] for number in others[: max(0, beyond)]]

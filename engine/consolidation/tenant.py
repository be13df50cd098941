"""One consolidation of a tenant: gather, dream, distil, examine, publish; or say why not.

The candidate is a copy: serving goes on, and nothing is visible before the one script that publishes it. Knows no
line of work: what is handed to it is due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.config import LevelConfig
from engine.consolidation.background import Background
from engine.consolidation.candidate import Candidate, Candidates, Dreamt
from engine.consolidation.culprits import Verdict, judge
from engine.consolidation.gate import norm, reason_of
from engine.consolidation.ground import Ground, Grounds
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.rehearsal import crowded_out, read_dreams, write_dreams
from engine.consolidation.sources import Source
from engine.consolidation.suite import Suite
from engine.core import Consolidation, GateCheck
from engine.following import Following
from engine.model.hope import Hope
from engine.model.shared import pack_shared
from engine.model.weights import fingerprint
from engine.observer import Observer
from engine.sessions.generations import Asked, Generation, Publication
from engine.sessions.quarantine import Blame
from engine.sessions.records import now_iso
from engine.sessions.snapshot import pack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer

logger = logging.getLogger("hope.worker")


@dataclass(frozen=True)
class _Found:
    """What came of trying: the candidate that is let in, if any, the first try's figures, and the verdict."""

    candidate: Candidate | None = None
    gate: dict[str, GateCheck] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def culprits(self) -> Mapping[str, str]:
        """Sessions that are set aside, and why."""
        return self.verdict.culprits if self.verdict is not None else {}

    @property
    def attempts(self) -> list[str]:
        """What was tried, in words."""
        tried = self.verdict.attempts if self.verdict is not None else ()
        return [f"{_counted(len(one.names))}: {one.refused or 'let in'}" for one in tried]

    @property
    def reason(self) -> str | None:
        """Why not all sessions were let in; None where they were."""
        verdict = self.verdict
        if verdict is None or verdict.attempts[0].refused is None:
            return None
        waiting = len(verdict.attempts[0].names) - len(verdict.let_in) - len(verdict.culprits)
        outcome = f"{_counted(len(verdict.let_in))} let in, {len(verdict.culprits)} set aside, {waiting} to wait"
        return f"{outcome}; tried " + "; ".join(self.attempts)


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
        model.requires_grad_(False)
        self._generations, self._observer, self._policy = store.generations, observer, policy
        self._fingerprint = fingerprint(model)
        following = Following(model, store, self._fingerprint, observer)
        self._grounds = Grounds(model, store, following, policy)
        self._background = Background("hope-dreams")
        self._candidates = Candidates(model, tokenizer, observer, policy, suite, self._background)

    def close(self) -> None:
        """Ends the thread after its current step."""
        self._background.close()

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
        level, ground = self._candidates.level, await self._grounds.find(tenant, asked)
        ended = _begun(asked.consolidation, ground.number, ground.sources)
        if level is None or (not ground.sources and not ground.goes_back):
            why = "this model has no level that sessions share" if level is None else "nothing new to take in"
            why += f"; {_counted(ground.num_excluded)} in quarantine" if ground.num_excluded else ""
            return await self._close(tenant, ended, "empty", why)
        dreamt, ground = await self._dream(tenant, asked, ground, halt)
        if dreamt is None and not ground.goes_back:
            await self._generations.quarantine.pass_over(tenant, ground.number, ground.passed)
            return await self._close(tenant, ended, "empty", "the new turns told nothing that was not known")
        found = await self._try(level, ground, dreamt, halt) if dreamt is not None else _Found()
        let_in = found.verdict.let_in if found.verdict is not None else ()
        await self._set_aside(tenant, ended, ground, found, let_in)
        if found.candidate is None and not ground.goes_back:
            await self._generations.quarantine.pass_over(tenant, ground.number, ground.passed)
            return await self._close(tenant, replace(ended, gate=found.gate), "rejected", found.reason or "")
        taken = [source for source in ground.sources if source.name in let_in]
        return await self._publish(tenant, _begun(ended, ground.number, taken), ground, taken, found)

    async def _close(self, tenant: str, ended: Consolidation, status: str, reason: str) -> Consolidation:
        ended = replace(ended, status=status, reason=reason, finished_at=now_iso())
        await self._generations.close(tenant, ended)
        return ended

    async def _dream(
        self, tenant: str, asked: Asked, ground: Ground, halt: asyncio.Event
    ) -> tuple[Dreamt | None, Ground]:
        """What the turns told, and the ground without those that told nothing; None where none did."""
        rehearsed = [dream for text in ground.rehearsal.values() for dream in read_dreams(text)]
        seed = ground.standing.latest
        while ground.sources:
            dreamt = await self._candidates.dream(ground.shared, ground.sources, rehearsed, seed, halt)
            if dreamt is not None:
                return dreamt, ground.beyond([one for one in ground.sources if one.name not in dreamt.told])
            # Small talk, however long, must not hide what was told after it.
            ground = await self._grounds.later(tenant, asked, ground.beyond(ground.sources))
        return None, ground

    async def _try(self, level: LevelConfig, ground: Ground, dreamt: Dreamt, halt: asyncio.Event) -> _Found:
        """Candidates of all that was told, and, where the gate refuses that, of less and less."""
        made: list[Candidate] = []
        tried: list[dict[str, GateCheck]] = []

        async def trial(names: tuple[str, ...]) -> str | None:
            candidate = await self._candidates.make(level, dreamt, names, halt)
            tried.append(candidate.gate)
            reason = reason_of(candidate.gate)
            if reason is None:
                made.append(candidate)
            return reason

        verdict = await judge(list(dreamt.told), ground.quarantine, trial, self._policy.most_attempts)
        let_in = next((one for one in made if set(one.dreams) == set(verdict.let_in)), None)
        return _Found(let_in, tried[0], verdict)

    async def _set_aside(
        self, tenant: str, ended: Consolidation, ground: Ground, found: _Found, let_in: Sequence[str]
    ) -> None:
        """Remembers who spoiled the candidate; what is cut off after this and begins again counts nobody twice."""
        ids = {source.name: source.session_id for source in ground.sources}
        culprits = {name: Blame(ids[name], reason) for name, reason in found.culprits.items()}
        cleared = [name for name in let_in if name in ground.quarantine]
        if not culprits and not cleared:
            return
        blamed = await self._generations.quarantine.judge(tenant, ended.id, culprits, cleared)
        for outcome, count in (
            ("excluded", sum(one.excluded for one in blamed)),
            ("waiting", sum(not one.excluded for one in blamed)),
        ):
            if count:
                self._observer.set_aside(outcome, count)
                logger.warning("%s spoiled a generation: %s", _counted(count), outcome)

    async def _publish(
        self, tenant: str, ended: Consolidation, ground: Ground, sources: Sequence[Source], found: _Found
    ) -> Consolidation:
        """The candidate that was let in; where there is none, the generation that was gone back to."""
        policy, number = self._policy, ground.standing.latest + 1
        candidate = found.candidate or Candidate(ground.shared, (0.0, 0.0), {}, {})
        generation = Generation(
            number=number,
            parent=ground.number,
            consolidation_id=ended.id,
            created_at=now_iso(),
            size_bytes=0,
            mark="",
            num_chunks=0,
            digest="",
            taken={source.name: len(source.turns) for source in sources},
            learned=ground.learned | {source.name: source.mark for source in sources},
            notes={
                "steps": float(policy.num_steps),
                "first_loss": candidate.losses[0],
                "last_loss": candidate.losses[1],
                "norm": norm(candidate.shared),
            },
            attempts=found.attempts,
            set_aside=list(found.culprits),
        )
        ended = replace(
            ended,
            status="accepted",
            to_generation=number,
            gate=candidate.gate,
            reason=found.reason,
            finished_at=generation.created_at,
        )
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


def _begun(consolidation: Consolidation, number: int, sources: Sequence[Source]) -> Consolidation:
    """With what it takes in."""
    turns = sum(len(source.turns) for source in sources)
    return replace(consolidation, from_generation=number, num_sessions=len(sources), num_turns=turns)


def _counted(number: int) -> str:
    return f"{number} session" if number == 1 else f"{number} sessions"


def _unwanted(ground: Ground, keep: int) -> list[Generation]:
    """The oldest generations beyond so many, but neither the active one nor the one begun from."""
    spared = {ground.number, ground.standing.active}
    others = sorted(number for number in ground.kept if number not in spared)
    beyond = len(ground.kept) + 1 - keep
    return [ground.kept[number] for number in others[: max(0, beyond)]]

"""One session's consolidation: load, dream or replay, put the learned `cms.medium` into the newest memory, commit.

No lease is held while it learns, so no turn waits for it; turns that come in between are kept, since replay
writes nothing but `cms.medium`. Knows no line of work: what is handed to it is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.config import CMS_MEDIUM
from engine.consolidation.background import Background, Stopped
from engine.consolidation.policy import GenerationPolicy, ReplayPolicy
from engine.consolidation.portion import Portion
from engine.consolidation.replay import UPDATES, compose, is_finite, mean_surprise, medium_of, step, with_medium
from engine.consolidation.suite import Suite, load_suite
from engine.core import Turn
from engine.errors import Conflict, LeaseLost, Overloaded, StoreUnavailable
from engine.following import Following
from engine.model.hope import Hope, Memory
from engine.model.portable import unpack_row
from engine.model.weights import fingerprint
from engine.observer import Observer
from engine.sessions.records import Commit, Head, Lease
from engine.sessions.snapshot import pack, unpack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer

logger = logging.getLogger("hope.worker")

# A turn holds its lease while it runs; whoever waits longer than this comes back later.
WAIT_FOR_LEASE_S = 60.0
LOOK_AROUND_S = 0.5


@dataclass(frozen=True)
class _Ground:
    """What a portion stands on: while it holds, what was learned may be committed. `more`: others wait."""

    num_consolidated_turns: int
    turns: tuple[Turn, ...]
    memory: Memory
    medium: Memory
    more: bool

    @property
    def mark(self) -> int:
        """Turns that will have been taken in."""
        return self.num_consolidated_turns + len(self.turns)

    @property
    def surprise(self) -> float:
        """Of the turns, all together."""
        return sum(turn.memory.surprise for turn in self.turns)


@dataclass(frozen=True)
class _Learned:
    """What came of a portion; `medium` is None where it must not be kept, and the ground's where nothing was told."""

    medium: Memory | None
    surprise_before: float
    surprise_after: float
    update_norm: float


class SessionConsolidation:
    """Consolidates sessions with one model, one step at a time on a thread of its own.

    Args:
        model, tokenizer: the ones the sessions' memories grew in.
        store: where the sessions are.
        observer: told what was learned.
        policy: how much and how hard.
        suite: how dreams begin, and what is to stay calm; by default the bundled one.
    """

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        store: SessionStore,
        observer: Observer,
        policy: ReplayPolicy,
        suite: Suite | None = None,
    ) -> None:
        self._model, self._tokenizer = model.requires_grad_(False), tokenizer
        self._store, self._observer, self._policy = store, observer, policy
        self._fingerprint, self._suite = fingerprint(model), suite or load_suite()
        self._following = Following(model, store, self._fingerprint, observer)
        self._background = Background("hope-replay")

    def close(self) -> None:
        """Ends the thread after its current step."""
        self._background.close()

    async def next_portion(self, tenant: str, session_id: str, halt: asyncio.Event) -> bool:
        """Takes the session's oldest new turns in; True where there were more than one portion holds.

        Raises:
            Stopped: `halt` was set; nothing was written.
            Conflict, LeaseLost: the ground has moved; nothing was written.
            Overloaded: the session stayed in use.
            OtherModel: the memory did not grow in this model.
            NotFound, CorruptMemory, StoreUnavailable, CommitUnknown: as the store says.
        """
        begun = time.monotonic()
        ground = await self._ground(tenant, session_id)
        if ground is None:
            self._observer.consolidation("empty", time.monotonic() - begun, 0)
            return False
        _, shared = await self._following.active(tenant)
        learned = await self._learn(ground, shared, halt)
        if learned.medium is ground.medium:
            # Small talk: nothing to keep, and nothing to be gone through again.
            await self._commit(tenant, session_id, ground, None, halt)
            self._observer.consolidation("empty", time.monotonic() - begun, len(ground.turns))
            return ground.more
        if learned.medium is None:
            self._observer.memory_update(CMS_MEDIUM, "rejected", 0.0)
            self._observer.consolidation("failed", time.monotonic() - begun, len(ground.turns))
            logger.error("what a session's consolidation taught was not finite or made it worse: dropped")
            return False
        try:
            await self._commit(tenant, session_id, ground, learned.medium, halt)
        except (Conflict, LeaseLost):
            self._observer.consolidation("fenced", time.monotonic() - begun, len(ground.turns))
            raise
        moved = "applied" if learned.update_norm > 0 else "skipped"
        self._observer.memory_update(CMS_MEDIUM, moved, learned.update_norm)
        self._observer.consolidation("accepted", time.monotonic() - begun, len(ground.turns))
        logger.info(
            "consolidated %d turns: %.2f -> %.2f nats",
            len(ground.turns),
            learned.surprise_before,
            learned.surprise_after,
        )
        return ground.more

    async def _ground(self, tenant: str, session_id: str) -> _Ground | None:
        head = await self._store.head(tenant, session_id)
        due = self._policy.next_turns(head.session.num_turns, head.num_consolidated_turns)
        turns = await self._store.turns_at(tenant, session_id, due.start, len(due)) if due else []
        if not turns:
            return None
        count = self._policy.num_within_budget([turn.usage.total_tokens for turn in turns])
        _, tensors = await self._load(tenant, session_id)
        mark = head.num_consolidated_turns
        more = head.session.num_turns > mark + count
        memory = await asyncio.to_thread(unpack_row, tensors, self._model)
        return _Ground(mark, tuple(turns[:count]), memory, medium_of(tensors, self._model), more)

    async def _load(self, tenant: str, session_id: str) -> tuple[int, dict[str, Tensor]]:
        begun = time.monotonic()
        version, blob = await self._store.load_memory(tenant, session_id)
        tensors = unpack(blob, fingerprint=self._fingerprint) if blob else {}
        self._observer.stored("load", "redis", time.monotonic() - begun, len(blob or b""))
        return version, tensors

    async def _learn(self, ground: _Ground, shared: Memory, halt: asyncio.Event) -> _Learned:
        """All of a portion: replay, dreams, or both."""
        learned = _Learned(ground.medium, 0.0, 0.0, 0.0)
        if self._policy.num_steps:
            learned = await self._replay(ground, halt)
        if self._policy.dreams is not None and learned.medium is not None:
            learned = await self._dream(ground, learned.medium, shared, self._policy.dreams, halt)
        return learned

    async def _replay(self, ground: _Ground, halt: asyncio.Event) -> _Learned:
        """The turns read again, step by step."""
        policy, model = self._policy, self._model
        rows = compose(ground.turns, self._tokenizer, policy)
        if not rows:  # turns that hold no text
            return _Learned(ground.medium, 0.0, 0.0, 0.0)
        rate = policy.rate(len(ground.turns))
        medium, before, norm, unmoved = ground.medium, float("nan"), 0.0, 0
        for number in range(policy.num_steps):
            medium, done = await self._background.compute(partial(step, model, medium, rows, policy, rate), halt)
            before = done.surprise if number == 0 else before
            norm, unmoved = norm + done.update_norm, max(unmoved, done.num_unmoved)
        after = await self._background.compute(partial(mean_surprise, model, medium, rows, policy), halt)
        self._observer.tokens("learned", sum(len(row.tokens) for row in rows) * policy.num_steps)
        if 0 < unmoved < len(rows):
            self._observer.memory_update(CMS_MEDIUM, "rejected", 0.0)
            logger.warning("%d of %d rows of a replay gave no finite gradient: left out", unmoved, len(rows))
        harmless = after <= before  # False too where either is not a number
        return _Learned(medium if harmless and is_finite(medium) else None, before, after, norm)

    async def _dream(
        self, ground: _Ground, medium: Memory, shared: Memory, policy: GenerationPolicy, halt: asyncio.Event
    ) -> _Learned:
        """The turns dreamt of, and `cms.medium` taught to answer as the dreamer did; small talk teaches nothing."""
        seed = int(medium[UPDATES])
        portion = Portion(self._model, self._tokenizer, self._suite, policy, medium, shared, ground.memory, seed)
        for turn in ground.turns:
            await self._background.compute(partial(portion.take_in, turn), halt)
        if not await self._background.compute(portion.prepare, halt):
            return _Learned(medium, 0.0, 0.0, 0.0)
        losses, norm = [], 0.0
        for number in range(policy.num_steps):
            done = await self._background.compute(partial(portion.step, number), halt)
            losses.append(done.loss)
            norm += done.update_norm
        learned = portion.medium
        harmless = losses[-1] <= losses[0]  # False too where either is not a number
        return _Learned(learned if harmless and is_finite(learned) else None, losses[0], losses[-1], norm)

    async def _commit(
        self, tenant: str, session_id: str, ground: _Ground, medium: Memory | None, halt: asyncio.Event
    ) -> None:
        """Under the lease, and no longer than that takes: the newest memory with the learned `cms.medium`.

        Where nothing was learned (None), no more than that the turns have been taken in.
        """
        lease = await self._lease(tenant, session_id, halt)
        try:
            begun = time.monotonic()
            head = await self._store.head(tenant, session_id)
            version, tensors = await self._load(tenant, session_id)
            await self._check(tenant, head, ground, tensors)
            if medium is None:
                await self._store.pass_turns(lease, head, ground.mark, ground.surprise)
                return
            blob = pack(with_medium(tensors, medium, self._model), fingerprint=self._fingerprint)
            commit = Commit(
                memory=blob,
                levels=(CMS_MEDIUM,),
                turn=None,
                num_tokens=0,
                idempotency_key=None,
                request_digest="",
                commit_id=f"consolidation-{secrets.token_hex(12)}",
                num_consolidated_turns=ground.mark,
                surprise=ground.surprise,
            )
            await self._store.commit(lease, version, commit)
            self._observer.stored("commit", "ok", time.monotonic() - begun, len(blob))
        finally:
            # A lease that cannot be given back runs out by itself.
            with contextlib.suppress(StoreUnavailable):
                await self._store.release(lease)

    async def _lease(self, tenant: str, session_id: str, halt: asyncio.Event) -> Lease:
        """Waits for the turn that holds the session, in short steps, so that a halt is heard."""
        deadline = time.monotonic() + WAIT_FOR_LEASE_S
        while not halt.is_set():
            try:
                return await self._store.acquire(tenant, session_id, secrets.token_hex(8), LOOK_AROUND_S)
            except Overloaded:
                if time.monotonic() >= deadline:
                    raise
        raise Stopped

    async def _check(self, tenant: str, head: Head, ground: _Ground, tensors: dict[str, Tensor]) -> None:
        """Turns may have been added; whatever else has moved makes what was learned worthless."""
        turns = await self._store.turns_at(tenant, head.session.id, ground.num_consolidated_turns, len(ground.turns))
        medium = medium_of(tensors, self._model)
        same_medium = all(torch.equal(medium[name], value) for name, value in ground.medium.items())
        same_turns = tuple(turns) == ground.turns and head.session.num_turns >= ground.mark
        if head.num_consolidated_turns != ground.num_consolidated_turns or not (same_medium and same_turns):
            raise Conflict("the session was consolidated or rolled back meanwhile")

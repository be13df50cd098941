"""`hope relearn`: after a change of the checkpoint, sessions are read again, from their transcripts, by the new model.

A session whose memory is of another model gets the memory that this one would have had, as one new version; the others
are left alone, so it can be stopped at any point and begun again. Knows no web.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Never

import torch
from tqdm import tqdm

from engine.config import CMS_FAST, TITANS, EngineSettings, StoreSettings
from engine.core import Session
from engine.errors import Conflict, CorruptMemory, HopeError, Internal, LeaseLost, NotFound, OtherModel, Overloaded
from engine.following import Following
from engine.model.hope import Hope
from engine.model.weights import fingerprint, load_checkpoint
from engine.observer import Observer
from engine.rereading import Rereading
from engine.sessions.opening import open_store
from engine.sessions.records import Commit
from engine.sessions.snapshot import check_model, pack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer

PAGE = 100
# A session that is spoken to meanwhile is begun again, so often.
ATTEMPTS = 3
WAIT_FOR_LEASE_S = 60.0
# The worker's line is told before the change, with time for it: a kill in between loses nothing.
HAND_OVER_S = 60.0


@dataclass
class Relearned:
    """What was done, or with `dry_run` is to be done.

    Attributes:
        sessions: looked at.
        relearned, turns, tokens: of sessions whose memory was of another model; tokens as they were counted when said.
        incomplete: turns that had read more than the transcript holds: system messages, or history of others.
        generations: of another model, in whose place generation 0 is active.
        failed: sessions that could not be read again; each was named.
    """

    sessions: int = 0
    relearned: int = 0
    turns: int = 0
    tokens: int = 0
    incomplete: int = 0
    generations: int = 0
    failed: int = 0


async def run_relearning(
    settings: EngineSettings, store_settings: StoreSettings, observer: Observer, *, dry_run: bool = False
) -> Relearned:
    """Reads every session again whose memory is of another model than the checkpoint of `settings`.

    Raises:
        InvalidRequest: the checkpoint is not one, or of a model that cannot be served; the store's URL or key.
        Conflict: a server uses the embedded store's folder.
        StoreUnavailable: the store does not answer; what was done stays done.
    """
    torch.set_num_threads(settings.torch_threads)
    model, tokenizer = await asyncio.to_thread(load_checkpoint, settings.checkpoint)
    model.config.check_servable()
    store, embedded = await open_store(store_settings)
    relearning = Relearning(model, tokenizer, store, settings, observer, dry_run=dry_run)
    try:
        await relearning.run()
    finally:
        await relearning.close()
        await store.close()
        if embedded:
            await embedded.stop()
    return relearning.done


class Relearning:
    """Walks the sessions of all tenants, so many at a time as run in one batch.

    Args:
        model, tokenizer: the ones that are served from now on.
        store: where the sessions are.
        settings: how many run together.
        observer: told what is read and learned.
        dry_run: looks and counts, and changes nothing.
    """

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        store: SessionStore,
        settings: EngineSettings,
        observer: Observer,
        *,
        dry_run: bool = False,
    ) -> None:
        self._store = store
        self._num_rows, self._dry_run = settings.max_batch_rows, dry_run
        self._fingerprint = fingerprint(model)
        self._following = Following(model, store, self._fingerprint, observer)
        self._reading = Rereading(model, tokenizer, store, settings, observer)
        self.done = Relearned()

    async def close(self) -> None:
        """Stops the engine's thread."""
        await self._reading.close()

    async def run(self) -> None:
        """All tenants' generations and sessions; what fails of one session stops no other."""
        tenants = await self._store.tenants.all()
        running: set[asyncio.Task[None]] = set()
        with tqdm(total=sum(tenants.values()), unit="session", desc="relearn") as bar:
            try:
                for tenant in tenants:
                    await self._put_generation_right(tenant, bar)
                    async for session in self._sessions(tenant):
                        if len(running) == self._num_rows:
                            running = await _one_less(running)
                        running.add(asyncio.create_task(self._see_to(tenant, session, bar)))
                while running:
                    running = await _one_less(running)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _sessions(self, tenant: str) -> AsyncIterator[Session]:
        after: str | None = None
        more = True
        while more:
            found, more = await self._store.list(tenant, PAGE, after)
            for session in found:
                yield session
            after = found[-1].id if found else None

    async def _put_generation_right(self, tenant: str, bar: tqdm[Never]) -> None:
        """Generation 0 in the place of an active one of another model, and a new one asked for."""
        generations = self._store.generations
        number = (await generations.standing(tenant)).active
        try:
            await self._following.load(tenant, number)
            return
        except OtherModel:
            self.done.generations += 1
        except (CorruptMemory, NotFound) as error:
            bar.write(f"tenant '{tenant}': {error.message}")
            return
        if self._dry_run:
            bar.write(f"tenant '{tenant}': generation {number} is of another model; 0 would be made the active one")
            return
        await generations.schedule(tenant, HAND_OVER_S)
        await generations.activate(tenant, 0)
        await generations.open(tenant)
        await generations.hand_over(tenant)
        bar.write(
            f"tenant '{tenant}': generation {number} is of another model, so 0 is active now; a new one is asked for, "
            "from the first turns of the sessions that contribute"
        )

    async def _see_to(self, tenant: str, session: Session, bar: tqdm[Never]) -> None:
        try:
            await self._attempt(tenant, session.id)
        except NotFound:
            pass  # it was deleted meanwhile
        except (CorruptMemory, Internal, Conflict, Overloaded) as error:
            self.done.failed += 1
            bar.write(f"tenant '{tenant}', session '{session.id}': left as it was: {error.message}")
        self.done.sessions += 1
        bar.set_postfix(relearned=self.done.relearned, turns=self.done.turns, refresh=False)
        bar.update()

    async def _attempt(self, tenant: str, session_id: str) -> None:
        """The session read again and committed; from the start where it went on meanwhile."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                session = await self._foreign(tenant, session_id)
                if session is None:
                    return
                incomplete = await self._relearn(tenant, session)
            except (Conflict, LeaseLost):
                if attempt == ATTEMPTS:
                    raise
            else:
                self.done.relearned += 1
                self.done.turns += session.num_turns
                self.done.tokens += session.num_tokens
                self.done.incomplete += incomplete
                return

    async def _foreign(self, tenant: str, session_id: str) -> Session | None:
        """The session, where its memory is of another model."""
        session = await self._store.get(tenant, session_id)
        version, memory = await self._store.load_memory(tenant, session_id)
        try:
            if memory is not None:
                await asyncio.to_thread(check_model, memory, fingerprint=self._fingerprint)
        except OtherModel:
            if version == session.version:
                return session
            raise Conflict("the session went on meanwhile: run it again") from None
        return None

    async def _relearn(self, tenant: str, session: Session) -> int:
        """Reads the transcript and commits what came of it; how many turns had read more than that."""
        incomplete = await self._reading.num_incomplete(tenant, session)
        if self._dry_run:
            return incomplete
        generation, shared = await self._following.active(tenant)
        tensors = await self._reading.read(tenant, session, shared)
        memory = await asyncio.to_thread(pack, tensors, fingerprint=self._fingerprint)
        name = f"relearning-{secrets.token_hex(12)}"
        commit = Commit(
            memory=memory,
            levels=(TITANS, CMS_FAST),
            turn=None,
            num_tokens=0,
            idempotency_key=None,
            request_digest="",
            commit_id=name,
            num_consolidated_turns=0,
            generation=generation,
        )
        lease = await self._store.acquire(tenant, session.id, name, WAIT_FOR_LEASE_S)
        try:
            await self._store.enqueue_consolidation(tenant, session.id, HAND_OVER_S)
            await self._store.commit(lease, session.version, commit)
            await self._store.enqueue_consolidation(tenant, session.id)
        finally:
            # One that cannot be given back runs out by itself.
            with contextlib.suppress(HopeError):
                await self._store.release(lease)
        return incomplete


async def _one_less(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Waits for one of them; what it raised is raised."""
    done, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return others

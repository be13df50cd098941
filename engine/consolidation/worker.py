"""The worker: takes sessions from the store's line and has their newer turns folded into `cms.medium`, and tenants,
for which it has generations made.

A process of its own that may be killed at any point: a claim that nobody keeps goes to the next worker, and
what counts as taken in is the mark in the session's head, which moves in the commit or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator

from engine.config import EngineSettings, StoreSettings
from engine.consolidation.background import Stopped
from engine.consolidation.policy import SESSION_POLICY, GenerationPolicy
from engine.consolidation.session import SessionConsolidation
from engine.consolidation.suite import load_suite
from engine.consolidation.tenant import TenantConsolidation
from engine.errors import (
    CommitUnknown,
    Conflict,
    CorruptMemory,
    InvalidRequest,
    LeaseLost,
    NotFound,
    OtherModel,
    Overloaded,
    StoreUnavailable,
)
from engine.model.weights import load_checkpoint
from engine.observer import Observer
from engine.sessions.records import Work
from engine.sessions.store import SessionStore

logger = logging.getLogger("hope.worker")

WAIT_FOR_WORK_S = 1.0
KEEP_CLAIM_EVERY_S = 15.0
BEAT_EVERY_S = 5.0
BEAT_TTL_S = 20.0
MOST_RESTARTS = 3
BUSY_DELAY_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


async def run_worker(
    settings: EngineSettings, store_settings: StoreSettings, observer: Observer, stop: asyncio.Event
) -> None:
    """Consolidates sessions until `stop` is set.

    Raises:
        InvalidRequest: the checkpoint is not one, or no store is named.
    """
    if store_settings.redis_url is None:
        raise InvalidRequest("a worker needs the URL of the store that the server uses", param="redis_url")
    model, tokenizer = await asyncio.to_thread(load_checkpoint, settings.checkpoint)
    model.config.check_servable()
    store = await SessionStore.connect(store_settings.redis_url, store_settings)
    suite = load_suite(settings.suite)
    consolidation = SessionConsolidation(model, tokenizer, store, observer, SESSION_POLICY, suite)
    tenants = TenantConsolidation(model, tokenizer, store, observer, GenerationPolicy(), suite)
    logger.info("waiting for sessions to consolidate")
    try:
        await Worker(store, consolidation, tenants, observer).run(stop)
    finally:
        consolidation.close()
        tenants.close()
        await store.close()
    logger.info("stopped")


class Worker:
    """Works the line off, one session at a time.

    Args:
        store: where the line and the sessions are.
        consolidation: what is done to a session.
        tenants: what is done to a tenant.
        observer: told how each ended.
    """

    def __init__(
        self,
        store: SessionStore,
        consolidation: SessionConsolidation,
        tenants: TenantConsolidation,
        observer: Observer,
    ) -> None:
        self._store, self._consolidation, self._tenants, self._observer = store, consolidation, tenants, observer
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. A store that does not answer is waited for, with the work at hand kept."""
        beating = asyncio.create_task(self._beat(stop))
        try:
            await self._work_the_line_off(stop)
        finally:
            beating.cancel()
            await asyncio.wait({beating})

    async def _beat(self, stop: asyncio.Event) -> None:
        """Says that it lives, for those who wait for it."""
        while not stop.is_set():
            with contextlib.suppress(StoreUnavailable):
                await self._store.line.beat(self._name, BEAT_TTL_S)
            await _sleep(BEAT_EVERY_S, stop)

    async def _work_the_line_off(self, stop: asyncio.Event) -> None:
        work: Work | None = None
        pause_s = FIRST_PAUSE_S
        while not stop.is_set():
            try:
                work = work or await self._store.next_consolidation(self._name, WAIT_FOR_WORK_S)
                if work is not None:
                    await self._work_off(work, stop)
                work, pause_s = None, FIRST_PAUSE_S
            except (StoreUnavailable, CommitUnknown) as error:
                logger.warning("%s; going on in %.1f s", error.message, pause_s)
                await _sleep(pause_s, stop)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _work_off(self, work: Work, stop: asyncio.Event) -> None:
        """One session, until nothing of it is left to take in; then its claim ends."""
        begun = time.monotonic()
        halt = asyncio.Event()
        try:
            await self._store.renew_consolidation(work)
            async with self._kept(work, stop, halt):
                await (self._consolidate(work, halt) if work.session_id else self._make_generation(work, halt))
        except Stopped:
            # At our own end the session goes back to the line; with a lost claim it is in other hands.
            if stop.is_set():
                await self._store.enqueue_consolidation(work.tenant, work.session_id)
        except LeaseLost:
            logger.info("a session was taken over by another worker")
            return
        except NotFound:
            logger.info("a session was deleted before it was consolidated")
        except Overloaded:
            logger.info("a session stayed in use; it goes back to the line")
            await self._store.enqueue_consolidation(work.tenant, work.session_id, BUSY_DELAY_S)
        except (CorruptMemory, OtherModel) as error:
            logger.error("a session cannot be consolidated: %s", error.message)
            self._observer.consolidation("failed", time.monotonic() - begun, 0)
        except (RuntimeError, ValueError):
            # The model failed on this session (torch raises these). Others must not wait for it; its next
            # turn puts it in line again.
            logger.exception("consolidating a session failed")
            self._observer.consolidation("failed", time.monotonic() - begun, 0)
        await self._store.finish_consolidation(work)

    async def _consolidate(self, work: Work, halt: asyncio.Event) -> None:
        """Portion by portion; a portion whose ground has moved is begun again, a few times."""
        num_restarts = 0
        while True:
            try:
                more = await self._consolidation.next_portion(work.tenant, work.session_id, halt)
                if not more:
                    return
            except OtherModel:
                raise  # it will not change by itself
            except (Conflict, LeaseLost) as error:
                # A deleted session shows here; its NotFound ends the matter.
                await self._store.get(work.tenant, work.session_id)
                num_restarts += 1
                if num_restarts > MOST_RESTARTS:
                    raise Overloaded("the session kept changing", retry_after_s=BUSY_DELAY_S) from error

    async def _make_generation(self, work: Work, halt: asyncio.Event) -> None:
        """The tenant's consolidation that was asked for, or one of its own accord."""
        asked = await self._store.generations.open(work.tenant)
        if work.attempt > MOST_RESTARTS:
            await self._tenants.fail(work.tenant, asked.consolidation, "the worker died of it again and again")
            return
        for _ in range(MOST_RESTARTS):
            try:
                await self._tenants.run(work.tenant, asked, halt)
                return
            except OtherModel:
                reason = "the active generation is of another model: run `hope relearn`"
                await self._tenants.fail(work.tenant, asked.consolidation, reason)
                return
            except Conflict:
                logger.info("what a generation was made of changed meanwhile; beginning again")
            except (RuntimeError, ValueError, CorruptMemory) as error:
                logger.exception("a tenant's consolidation failed")
                await self._tenants.fail(work.tenant, asked.consolidation, f"it failed: {type(error).__name__}")
                return
        await self._tenants.fail(work.tenant, asked.consolidation, "what it was made of kept changing")

    @contextlib.asynccontextmanager
    async def _kept(self, work: Work, stop: asyncio.Event, halt: asyncio.Event) -> AsyncIterator[None]:
        """Keeps the claim while the block runs; sets `halt` when it is lost or the worker is to stop."""

        async def keep() -> None:
            while not await _sleep(KEEP_CLAIM_EVERY_S, stop):
                # A store that is away for a moment is no reason to stop: the commit is fenced.
                with contextlib.suppress(StoreUnavailable):
                    await self._store.renew_consolidation(work)

        def ended(task: asyncio.Task[None]) -> None:
            halt.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.info("the claim on a session ended: %s", error)

        keeper = asyncio.create_task(keep())
        keeper.add_done_callback(ended)
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.wait({keeper})


async def _sleep(seconds: float, stop: asyncio.Event) -> bool:
    """Waits so long, or until `stop` is set; True where it is."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()

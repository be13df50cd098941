"""A turn as a transaction on a session's memory, the event loop's side of it.

Wait for the session, take its lease, bring its memory up, hand the turn to the engine's thread, stream, commit.
Until the commit nothing is visible; once begun it is seen through. Knows no admission and no web.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from engine.config import CMS_FAST, TITANS, EngineSettings, StoreSettings
from engine.core import (
    Observer,
    Session,
    Timing,
    Turn,
    TurnCompleted,
    TurnCreated,
    TurnEvent,
    TurnRequest,
    TurnToken,
)
from engine.errors import Conflict, HopeError, StoreUnavailable
from engine.live import Failed, Finished, LiveTurn, Signal, Spoken
from engine.loop import EngineLoop
from engine.model.hope import Hope, Memory
from engine.model.portable import unpack_row
from engine.model.weights import fingerprint
from engine.sessions.keeping import kept
from engine.sessions.records import Commit, Lease
from engine.sessions.residency import Residency
from engine.sessions.snapshot import pack, unpack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer
from engine.turnstile import Turnstile
from engine.views import make_turn, milliseconds

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Ground:
    """What a turn stands on: the session as it was and its memory; a turn that learns nothing has no lease."""

    session: Session
    memory: Memory
    lease: Lease | None


class Turns:
    """Runs turns of this replica's sessions, and keeps the memories it has lately used."""

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        store: SessionStore,
        settings: EngineSettings,
        store_settings: StoreSettings,
        observer: Observer,
    ) -> None:
        self.model, self.tokenizer, self.store, self.observer = model, tokenizer, store, observer
        self.settings, self.store_settings = settings, store_settings
        self.fingerprint = fingerprint(model)
        self.loop = EngineLoop(model, settings, observer)
        self._residency: Residency[Memory] = Residency(settings.resident_bytes)
        self._turnstile = Turnstile()
        self._rows = 0
        self._commits: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Stops the engine's thread and sees begun commits through."""
        await asyncio.to_thread(self.loop.stop)
        if self._commits:
            await asyncio.wait(self._commits)

    def forget(self, tenant: str, session_id: str) -> None:
        """Drops a session's memory from this replica."""
        self._residency.drop(tenant, session_id)

    async def run(
        self, tenant: str, session_id: str, request: TurnRequest, arrived: float
    ) -> AsyncGenerator[TurnEvent, None]:
        """The events of one turn; `arrived` is when it was asked for (monotonic)."""
        turn_id = f"turn-{secrets.token_hex(12)}"
        digest = _digest(request)
        async with self._turnstile.enter((tenant, session_id), arrived + request.timeout_s):
            stored = await self._stored(tenant, session_id, request, digest)
            for event in _replay(stored):
                yield event
            if stored is not None:
                return
            async with self._ground(tenant, session_id, request, arrived) as ground:
                # Another replica may have finished the same request while this one waited for the lease.
                stored = await self._stored(tenant, session_id, request, digest)
                for event in _replay(stored):
                    yield event
                if stored is not None:
                    return
                yield TurnCreated(turn_id)
                finished: Finished | None = None
                index = 0
                async with contextlib.aclosing(self._run(ground, request, arrived)) as signals:
                    async for signal in signals:
                        if isinstance(signal, Spoken):
                            yield TurnToken(turn_id, index, signal.text)
                            index += 1
                        elif isinstance(signal, Finished):
                            finished = signal
                assert finished is not None  # `_run` ends with a result or raises
                turn = await self._conclude(tenant, ground, request, finished, turn_id, digest, arrived)
            yield TurnCompleted(turn)

    async def _stored(self, tenant: str, session_id: str, request: TurnRequest, digest: str) -> Turn | None:
        if request.idempotency_key is None:
            return None
        return await self.store.stored_turn(tenant, session_id, request.idempotency_key, digest)

    @contextlib.asynccontextmanager
    async def _ground(
        self, tenant: str, session_id: str, request: TurnRequest, arrived: float
    ) -> AsyncIterator[_Ground]:
        """The session under its lease (a turn that learns nothing needs none), and its memory."""
        lease: Lease | None = None
        if request.learn:
            wait_s = max(0.0, arrived + request.timeout_s - time.monotonic())
            lease = await self.store.acquire(tenant, session_id, secrets.token_hex(8), wait_s)
        try:
            async with kept(self.store, lease, self.store_settings.lease_ttl_s):
                session = await self.store.get(tenant, session_id)
                if request.if_version is not None and request.if_version != session.version:
                    raise Conflict(
                        f"the session is at version {session.version}, not {request.if_version}: "
                        "read it again and decide anew",
                        param="if_version",
                    )
                session, memory = await self.bring_up(tenant, session)
                yield _Ground(session, memory, lease)
        finally:
            if lease is not None:
                await self._see_through(self._give_back(lease))

    async def _give_back(self, lease: Lease) -> None:
        # A lease that cannot be given back runs out by itself; the turn's own outcome is what counts.
        with contextlib.suppress(StoreUnavailable):
            await self.store.release(lease)

    async def bring_up(self, tenant: str, session: Session) -> tuple[Session, Memory]:
        """The head's memory, from this replica's cache or the store, and the session at that version.

        Without a lease the head may have moved on meanwhile; then it is the newer one.
        """
        begun = time.monotonic()
        memory = self._residency.get(tenant, session)
        source = "resident"
        if memory is None:
            source = "redis"
            version, blob = await self.store.load_memory(tenant, session.id)
            tensors = unpack(blob, fingerprint=self.fingerprint) if blob else {}
            memory = await asyncio.to_thread(unpack_row, tensors, self.model)
            session = replace(session, version=version)
            self._keep(tenant, session, memory)
        self.observer.stored("load", source, time.monotonic() - begun, session.memory_bytes)
        return session, memory

    def _keep(self, tenant: str, session: Session, memory: Memory) -> None:
        size = sum(value.numel() * value.element_size() for value in memory.values())
        self._residency.put(tenant, session, memory, size)
        self.observer.resident(len(self._residency), self._residency.size_bytes)

    async def _run(self, ground: _Ground, request: TurnRequest, arrived: float) -> AsyncGenerator[Signal, None]:
        """The engine thread's signals of one turn, the last of them `Finished`."""
        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[Signal] = asyncio.Queue()
        self._rows += 1
        live = LiveTurn.begin(
            self._rows,
            request,
            ground.memory,
            self.tokenizer,
            lambda signal: _post(loop, signals, signal),
            arrived,
        )
        self.loop.submit(live)
        try:
            while True:
                signal = await signals.get()
                if isinstance(signal, Failed):
                    raise signal.error
                yield signal
                if isinstance(signal, Finished):
                    return
        finally:
            live.cancelled = True

    async def _conclude(
        self,
        tenant: str,
        ground: _Ground,
        request: TurnRequest,
        finished: Finished,
        turn_id: str,
        digest: str,
        arrived: float,
    ) -> Turn:
        """Commits what was learned and makes the Turn."""
        begun = time.monotonic()
        turn = make_turn(self.model, ground.session, ground.memory, request, finished, turn_id)
        self.observer.tokens("prompt", finished.prompt_tokens)
        self.observer.tokens("generation", finished.completion_tokens)
        if finished.tensors is None or finished.memory is None or ground.lease is None:
            return turn
        blob = await asyncio.to_thread(pack, finished.tensors, fingerprint=self.fingerprint)
        commit = Commit(
            memory=blob,
            levels=(TITANS, CMS_FAST),
            turn=turn,
            num_tokens=turn.usage.total_tokens,
            idempotency_key=request.idempotency_key,
            request_digest=digest,
            commit_id=turn_id,
        )
        committed = await self._see_through(self._commit(tenant, ground, commit, finished.memory, begun))
        timing = Timing(
            turn.timing.queue_ms,
            turn.timing.first_token_ms,
            milliseconds(committed - arrived),
            milliseconds(committed - begun),
        )
        return replace(turn, timing=timing)

    async def _see_through(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Once begun, a commit and what follows it are seen through: the store must not be left guessing.

        It is then too late to cancel: the turn ends as the store says it did.
        """
        task = asyncio.create_task(work)
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None:
                    current.uncancel()
        return task.result()

    async def _commit(self, tenant: str, ground: _Ground, commit: Commit, memory: Memory, begun: float) -> float:
        """Returns the monotonic time at which the store had it."""
        assert ground.lease is not None
        assert commit.turn is not None
        try:
            session = await self.store.commit(ground.lease, ground.session.version, commit)
        except HopeError:
            self._residency.drop(tenant, ground.session.id)
            self.observer.stored("commit", "refused", 0.0, 0)
            raise
        committed = time.monotonic()
        self._keep(tenant, session, memory)
        self.observer.stored("commit", "ok", committed - begun, len(commit.memory))
        await self._hand_to_worker(tenant, session.id, commit.turn.index + 1)
        return committed

    async def _hand_to_worker(self, tenant: str, session_id: str, num_turns: int) -> None:
        """Every so many turns at once, else when the session has gone quiet."""
        due_now = num_turns % self.settings.turns_per_consolidation == 0
        delay = 0.0 if due_now else self.settings.idle_consolidation_s
        # The turn is durable; a session that misses its place in line gets another with its next turn.
        with contextlib.suppress(StoreUnavailable):
            await self.store.enqueue_consolidation(tenant, session_id, delay)


def _post(loop: asyncio.AbstractEventLoop, signals: asyncio.Queue[Signal], signal: Signal) -> None:
    # The loop is gone only when the process is ending; then nobody waits for the signal.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(signals.put_nowait, signal)


def _digest(request: TurnRequest) -> str:
    """What makes two requests under one idempotency key the same: the body."""
    body = {name: value for name, value in asdict(request).items() if name != "idempotency_key"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _replay(turn: Turn | None) -> list[TurnEvent]:
    """The events of a turn that was stored earlier; none for None."""
    if turn is None:
        return []
    spoken: list[TurnEvent] = [TurnToken(turn.id, 0, turn.reply)] if turn.reply else []
    return [TurnCreated(turn.id), *spoken, TurnCompleted(turn, replayed=True)]

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
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, replace

from engine.admission import Admission
from engine.config import CMS_FAST, TITANS, EngineSettings, StoreSettings
from engine.core import (
    Said,
    Timing,
    Turn,
    TurnCompleted,
    TurnCreated,
    TurnEvent,
    TurnRequest,
    TurnToken,
)
from engine.errors import HopeError, StoreUnavailable
from engine.grounds import Ground, Grounds
from engine.handover import Handover
from engine.live import Failed, Finished, LiveTurn, Signal, Spoken
from engine.loop import EngineLoop
from engine.model.hope import Hope, Memory
from engine.observer import Observer
from engine.seen_through import SeenThrough
from engine.sessions.records import Commit
from engine.sessions.snapshot import pack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer
from engine.turnstile import Turnstile
from engine.views import make_turn, milliseconds


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
        admission: Admission,
    ) -> None:
        self.model, self.tokenizer, self.store, self.observer = model, tokenizer, store, observer
        self.settings, self.store_settings = settings, store_settings
        self.loop = EngineLoop(model, settings, observer)
        self.admission = admission
        self._see_through = SeenThrough()
        self.grounds = Grounds(model, store, settings, store_settings, observer, self._see_through)
        self._handover = Handover(store, settings)
        self._turnstile = Turnstile()
        self._rows = 0

    async def close(self) -> None:
        """Stops the engine's thread and sees begun commits through."""
        await asyncio.to_thread(self.loop.stop)
        await self._see_through.wait()

    async def run(
        self, tenant: str, session_id: str, request: TurnRequest, arrived: float, digest: str | None = None
    ) -> AsyncGenerator[TurnEvent, None]:
        """The events of one turn.

        Args:
            session_id: empty for a turn without a session, which learns nothing.
            arrived: when it was asked for (monotonic).
            digest: of what was asked; by default the request's.
        """
        size = self.admission.measure(request)
        turn_id = f"turn-{secrets.token_hex(12)}"
        digest = digest or digest_of(request)
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(
                self._turnstile.enter((tenant, session_id or turn_id), arrived + request.timeout_s)
            )
            stored = await self._stored(tenant, session_id, request, digest)
            for event in _replay(stored):
                yield event
            if stored is not None:
                return
            request = await self.admission.take_credit(tenant, session_id, request, size)
            ground = await held.enter_async_context(self.grounds.stand(tenant, session_id, request, arrived))
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
                        yield TurnToken(turn_id, index, signal.text, signal.logprobs)
                        index += 1
                    elif isinstance(signal, Finished):
                        finished = signal
            assert finished is not None  # `_run` ends with a result or raises
            turn = await self._conclude(tenant, ground, request, finished, turn_id, digest, arrived)
            # It is durable: the answer does not wait for what is left, though the session's next turn does.
            self._see_through.begin(self._settle(tenant, ground, turn, held.pop_all()))
        yield TurnCompleted(turn)

    async def _settle(self, tenant: str, ground: Ground, turn: Turn, held: contextlib.AsyncExitStack) -> None:
        """What is left to do after a turn; then the session is free."""
        async with held:
            await self.admission.take_spoken(tenant, turn)
            if turn.memory.learned and ground.session.contribute:
                # Its tenant's next turn puts it in line as well.
                with contextlib.suppress(StoreUnavailable):
                    await self._handover.schedule(tenant)

    async def _stored(self, tenant: str, session_id: str, request: TurnRequest, digest: str) -> Turn | None:
        if request.idempotency_key is None or not session_id:
            return None
        return await self.store.stored_turn(tenant, session_id, request.idempotency_key, digest)

    async def _run(self, ground: Ground, request: TurnRequest, arrived: float) -> AsyncGenerator[Signal, None]:
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
        ground: Ground,
        request: TurnRequest,
        finished: Finished,
        turn_id: str,
        digest: str,
        arrived: float,
    ) -> Turn:
        """Commits what was learned and makes the Turn."""
        begun = time.monotonic()
        turn, blob = await asyncio.to_thread(self._written, ground, request, finished, turn_id)
        self.observer.tokens("prompt", finished.prompt_tokens)
        self.observer.tokens("generation", finished.completion_tokens)
        if blob is None or finished.memory is None or ground.lease is None:
            return turn
        commit = Commit(
            memory=blob,
            levels=(TITANS, CMS_FAST),
            turn=turn,
            num_tokens=turn.usage.total_tokens,
            idempotency_key=request.idempotency_key,
            request_digest=digest,
            commit_id=turn_id,
            back_to=ground.back_to,
            before=request.before,
        )
        committed = await self._see_through(self._commit(tenant, ground, commit, finished.memory, begun))
        timing = Timing(
            turn.timing.queue_ms,
            turn.timing.first_token_ms,
            milliseconds(committed - arrived),
            milliseconds(committed - begun),
        )
        return replace(turn, timing=timing)

    def _written(
        self, ground: Ground, request: TurnRequest, finished: Finished, turn_id: str
    ) -> tuple[Turn, bytes | None]:
        """The Turn, and the memory as the store takes it; called in a thread, for both go through all of a memory."""
        turn = make_turn(self.model, ground.session, ground.memory, request, finished, turn_id)
        if finished.tensors is None:
            return turn, None
        return turn, pack(finished.tensors, fingerprint=self.grounds.fingerprint)

    async def _commit(self, tenant: str, ground: Ground, commit: Commit, memory: Memory, begun: float) -> float:
        """Returns the monotonic time at which the store had it."""
        assert ground.lease is not None
        try:
            head = await self.store.commit(ground.lease, ground.session.version, commit)
        except HopeError:
            self.grounds.forget(tenant, ground.session.id)
            self.observer.stored("commit", "refused", 0.0, 0)
            raise
        committed = time.monotonic()
        if head.session.version == ground.session.version + 1:
            self.grounds.keep(tenant, head.session, memory)
        else:  # the answer was so late that another replica's turn came between: its memory is the head's
            self.grounds.forget(tenant, head.session.id)
        self.observer.stored("commit", "ok", committed - begun, len(commit.memory))
        # The turn is durable; a session that misses its place in line gets another with its next turn.
        with contextlib.suppress(HopeError):
            await self._handover.put(tenant, head)
        return committed


def _post(loop: asyncio.AbstractEventLoop, signals: asyncio.Queue[Signal], signal: Signal) -> None:
    # The loop is gone only when the process is ending; then nobody waits for the signal.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(signals.put_nowait, signal)


def digest_of(request: TurnRequest, messages: Sequence[Said] = ()) -> str:
    """What makes two requests under one idempotency key the same: the body."""
    body = {name: value for name, value in asdict(request).items() if name != "idempotency_key"}
    # Unasked it does not count: keys that were used before there was such a field stay good.
    if request.top_logprobs is None:
        del body["top_logprobs"]
    body |= {"messages": [asdict(said) for said in messages]}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _replay(turn: Turn | None) -> list[TurnEvent]:
    """The events of a turn that was stored earlier; none for None."""
    if turn is None:
        return []
    spoken: list[TurnEvent] = [TurnToken(turn.id, 0, turn.reply)] if turn.reply else []
    return [TurnCreated(turn.id), *spoken, TurnCompleted(turn, replayed=True)]

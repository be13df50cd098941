"""A session's transcript read again by a model, turn after turn: as if each were live, but for its known reply.

Many sessions are read together, in the batches of one engine's thread. Commits nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator

from torch import Tensor

from engine.config import EngineSettings
from engine.core import Said, Session, Turn, TurnRequest
from engine.errors import Conflict
from engine.live import Failed, Finished, LiveTurn, Signal
from engine.loop import EngineLoop
from engine.model.hope import Hope, Memory
from engine.model.portable import pack_row, unpack_row
from engine.model.shared import with_shared
from engine.observer import Observer
from engine.sessions.chain import ASSISTANT, BEGINNING, extend
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer

PAGE = 100


class Rereading:
    """Reads sessions again.

    Args:
        model, tokenizer: the ones that read.
        store: where the transcripts are.
        settings: how many sessions are read together.
        observer: told what is read and learned.
    """

    def __init__(
        self, model: Hope, tokenizer: Tokenizer, store: SessionStore, settings: EngineSettings, observer: Observer
    ) -> None:
        self._model, self._tokenizer, self._store = model, tokenizer, store
        self._loop = EngineLoop(model, settings, observer)
        self._loop.start()
        self._rows = itertools.count(1)

    async def close(self) -> None:
        """Stops the engine's thread."""
        await asyncio.to_thread(self._loop.stop)

    async def read(self, tenant: str, session: Session, shared: Memory) -> dict[str, Tensor]:
        """The memory that grows of a session's turns, as the store takes it.

        Args:
            shared: what the generation knows under which they are read (batch size 1).

        Raises:
            Conflict: the session was rolled back meanwhile.
            Internal: the model's numbers were not finite.
        """
        memory = unpack_row({}, self._model)
        tensors = pack_row(memory, self._model.config.chunk_projections)
        async for turn in self._turns(tenant, session):
            if turn.memory.learned:
                finished = await self._hear(turn, with_shared(memory, shared))
                assert finished.memory is not None  # a turn that learns ends with one
                assert finished.tensors is not None
                memory, tensors = finished.memory, finished.tensors
        return tensors

    async def num_incomplete(self, tenant: str, session: Session) -> int:
        """Turns that had read what their transcript does not hold, by the digests of all that was said."""
        digests = await self._store.history(tenant, session.id)
        told = {index: digest for digest, index in digests.items() if ":" not in digest}
        system = {index for digest, index in digests.items() if ":" in digest}
        digest, count = BEGINNING, 0
        async for turn in self._turns(tenant, session):
            digest = extend(digest, (Said("user", turn.message), Said(ASSISTANT, turn.reply)))
            actual = told.get(turn.index, digest)
            count += actual != digest or turn.index in system
            digest = actual
        return count

    async def _turns(self, tenant: str, session: Session) -> AsyncIterator[Turn]:
        """The transcript, page by page."""
        first = 0
        while first < session.num_turns:
            page = await self._store.turns_at(tenant, session.id, first, min(PAGE, session.num_turns - first))
            if not page:
                raise Conflict("the session was rolled back meanwhile: run it again")
            for turn in page:
                yield turn
            first += len(page)

    async def _hear(self, turn: Turn, memory: Memory) -> Finished:
        """One turn as if it were live, but for the reply, which is the one that was given."""
        ended: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def emit(signal: Signal) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is gone: nobody waits
                loop.call_soon_threadsafe(_settle, ended, signal)

        said = self._tokenizer.encode(turn.reply)
        request = TurnRequest(turn.message, max_tokens=len(said), timeout_s=math.inf)
        row, now = next(self._rows), time.monotonic()
        live = LiveTurn.begin(row, request, memory, self._tokenizer, emit, now, said or None)
        self._loop.submit(live)
        try:
            return await ended
        finally:
            live.cancelled = True


def _settle(ended: asyncio.Future[Finished], signal: Signal) -> None:
    if ended.done():
        return
    if isinstance(signal, Failed):
        ended.set_exception(signal.error)
    elif isinstance(signal, Finished):
        ended.set_result(signal)

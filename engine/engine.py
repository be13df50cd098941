"""The engine's face: sessions, and turns as transactions on their memory.

Admit, lease, bring the memory up, hand the turn to the engine's thread, stream, commit: the event loop's side of a
turn. The device's side is `loop.py`. Knows no web.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence

import torch

from engine.admission import Admission
from engine.archive import Archive
from engine.chats import Chats
from engine.config import EngineSettings, StoreSettings
from engine.core import (
    Consolidation,
    GenerationView,
    Health,
    MemoryView,
    QuarantineView,
    Said,
    Session,
    Turn,
    TurnEvent,
    TurnRequest,
    VersionView,
)
from engine.generations import Generations
from engine.grounds import Ground
from engine.health import Pulse
from engine.model.hope import Hope
from engine.model.weights import load_checkpoint
from engine.observer import Observer
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.opening import open_store
from engine.sessions.past import turn_and_last
from engine.sessions.records import now_iso
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer
from engine.turns import Turns
from engine.views import memory_view

logger = logging.getLogger(__name__)

GOODBYE_TIMEOUT_S = 5.0


class Engine:
    """One replica: stateless between turns, but for a cache of memories it has lately used."""

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        store: SessionStore,
        settings: EngineSettings,
        store_settings: StoreSettings,
        observer: Observer,
        *,
        redis_url: str,
        embedded: EmbeddedStore | None = None,
    ) -> None:
        self.model, self.tokenizer, self.store = model, tokenizer, store
        self.settings, self.store_settings, self.observer = settings, store_settings, observer
        self.redis_url = redis_url
        self.model_name = "hope"
        self._embedded = embedded
        self._admission = Admission(tokenizer, store, settings, observer)
        self._turns = Turns(model, tokenizer, store, settings, store_settings, observer, self._admission)
        self._chats = Chats(store, self._turns)
        grounds = self._turns.grounds
        self._archive = Archive(model, grounds.fingerprint, store, store_settings, grounds.forget)
        self._generations = Generations(store)
        self._pulse = Pulse(self._turns.loop, self._admission, store)

    @classmethod
    async def open(
        cls,
        settings: EngineSettings,
        store_settings: StoreSettings,
        observer: Observer,
        loaded: tuple[Hope, Tokenizer] | None = None,
    ) -> Engine:
        """Loads the checkpoint, connects to the store (or starts the embedded one), starts the engine's thread.

        Args:
            loaded: a model and its tokenizer, in place of the checkpoint of `settings`.

        Raises:
            InvalidRequest: the checkpoint is not one, or of a model that cannot be served; the store's URL or key.
            StoreUnavailable: the store does not answer.
        """
        torch.set_num_threads(settings.torch_threads)
        model, tokenizer = loaded if loaded else await asyncio.to_thread(load_checkpoint, settings.checkpoint)
        model.config.check_servable()
        store, embedded = await open_store(store_settings)
        url = embedded.url if embedded else str(store_settings.redis_url)
        engine = cls(model, tokenizer, store, settings, store_settings, observer, redis_url=url, embedded=embedded)
        engine._turns.loop.start()
        return engine

    def begin_drain(self) -> None:
        """From now on turns are refused with `Draining`; running ones go on."""
        self._admission.draining = True

    async def close(self) -> None:
        """Lets running turns finish within `drain_timeout_s`, then stops the thread and the store."""
        self.begin_drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self._admission.idle.wait()
        await self._turns.close()
        # Turns that were cut short give their leases back before the store goes.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self._admission.idle.wait()
        await self.store.close()
        if self._embedded:
            await self._embedded.stop()

    def turn(self, tenant: str, session_id: str, request: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """One turn: `TurnCreated`, `TurnToken`s, `TurnCompleted`.

        The last event means: memory, transcript and idempotency record are in the store. Closing the iterator
        before it cancels the turn, and the memory stays that of before.

        Raises:
            HopeError: see `engine.errors`; nothing was learned, except where `CommitUnknown` says it may have been.
        """
        arrived = time.monotonic()
        return self._admission.counted(self._turns.run(tenant, session_id, request, arrived), arrived)

    def chat(
        self,
        tenant: str,
        session_id: str | None,
        messages: Sequence[Said],
        request: TurnRequest,
        follows: str | None = None,
    ) -> AsyncGenerator[TurnEvent, None]:
        """The turn of a client that sends the whole conversation each time: only what is new of it is read.

        A conversation that ends before the session's last turn undoes what came after its end. Without a session all
        of it is read, and nothing kept. Events, errors and cancelling as `turn`.

        Args:
            session_id: made where it is new; None for none.
            messages: everything said so far, the user's new message last.
            request: how to answer; its message is not used.
            follows: id of the session's turn after which the messages come, all of them new; later ones are undone.

        Raises:
            Conflict: the conversation contradicts the session's transcript, or goes back to what is not kept.
            NotFound: the session, or the turn that is to be followed, is not there.
        """
        arrived = time.monotonic()
        turn = self._chats.run(tenant, session_id, messages, request, arrived, follows)
        return self._admission.counted(turn, arrived)

    async def create_session(
        self, tenant: str, session_id: str | None, metadata: dict[str, str], contribute: bool
    ) -> Session:
        """A new session at version 0; raises Conflict where the id is taken."""
        now = now_iso()
        name = session_id or f"s-{secrets.token_hex(8)}"
        session = Session(name, now, now, contribute=contribute, metadata=metadata)
        await self.store.create(tenant, session)
        return session

    async def session(self, tenant: str, session_id: str) -> Session:
        """A session, or NotFound."""
        return await self.store.get(tenant, session_id)

    async def sessions(self, tenant: str, limit: int, after: str | None) -> tuple[list[Session], bool]:
        """A page of the tenant's sessions and whether more follow."""
        return await self.store.list(tenant, limit, after)

    async def update_session(
        self, tenant: str, session_id: str, metadata: dict[str, str] | None, contribute: bool | None
    ) -> Session:
        """Changes what is not None."""
        return await self.store.update(tenant, session_id, metadata, contribute)

    async def delete_session(self, tenant: str, session_id: str) -> list[int]:
        """Removes a session and everything that belongs to it, and keeps it out of every later generation.

        Returns:
            The generations that had learned from it.
        """
        self._turns.grounds.forget(tenant, session_id)
        return await self._generations.delete_session(tenant, session_id)

    async def turns(self, tenant: str, session_id: str, limit: int, after: str | None) -> tuple[list[Turn], bool]:
        """A page of the transcript and whether more follows."""
        return await self.store.turns(tenant, session_id, limit, after)

    async def read_turn(self, tenant: str, session_id: str, turn_id: str) -> tuple[Turn, Turn | None]:
        """A turn of the transcript and the one before it, or NotFound."""
        return await turn_and_last(self.store, tenant, session_id, turn_id)

    async def undo_turn(self, tenant: str, session_id: str, turn_id: str) -> Session:
        """Takes the session's last turn back: its memory is again what it was before it.

        Raises:
            NotFound: no such session, or no such turn in it.
            Conflict: others came after it, or the version before it is not retained.
        """
        return await self._archive.undo(tenant, session_id, turn_id)

    async def memory(self, tenant: str, session_id: str) -> MemoryView:
        """Every level of the session's memory, and the surprise of its turns."""
        session = await self.store.get(tenant, session_id)
        grounds = self._turns.grounds
        ground = await grounds.under_generation(tenant, Ground(*await grounds.bring_up(tenant, session), None))
        return await memory_view(self.store, tenant, ground.session, ground.memory, self.model)

    async def versions(self, tenant: str, session_id: str) -> list[VersionView]:
        """The versions of a session's memory that can be gone back to, newest first; and to 0, always."""
        return await self._archive.versions(tenant, session_id)

    async def rollback(self, tenant: str, session_id: str, version: int) -> Session:
        """Makes a retained version the head again, under the next number, and undoes the turns and versions after it.

        Raises:
            NotFound: no such session, or the version is not retained.
            Overloaded: a turn of the session does not end.
        """
        return await self._archive.rollback(tenant, session_id, version)

    async def fork(self, tenant: str, session_id: str, version: int | None, new_id: str | None) -> Session:
        """A second session with the memory and transcript of a version (by default the head) of a first.

        Raises:
            NotFound: no such session, or the version is not retained.
            Conflict: the new id is taken.
        """
        return await self._archive.fork(tenant, session_id, version, new_id)

    async def export_session(self, tenant: str, session_id: str) -> bytes:
        """A session's head as a safetensors file, session and transcript in its header."""
        return await self._archive.export(tenant, session_id)

    async def import_session(self, tenant: str, file: bytes, session_id: str | None) -> Session:
        """A new session from an exported one.

        Raises:
            InvalidRequest: the file is damaged.
            Conflict: it is another model's, or the id is taken.
        """
        return await self._archive.take_in(tenant, file, session_id)

    async def consolidate(self, tenant: str, *, wait: bool = False, without: str | None = None) -> Consolidation:
        """Has the tenant's contributing sessions folded into a new generation by the worker.

        One that runs already is what is returned.

        Args:
            wait: until it has ended, at most ten minutes; and no longer than there is a worker.
            without: id of a session, deleted or not: begin again from the last generation that had not learned from it.

        Raises:
            Overloaded: it was to be waited for, and there is no worker; it stays in line for one.
        """
        return await self._generations.consolidate(tenant, wait, without)

    async def consolidation(self, tenant: str, consolidation_id: str) -> Consolidation:
        """One of the last hundred consolidations, or NotFound."""
        return await self._generations.consolidation(tenant, consolidation_id)

    async def consolidations(self, tenant: str) -> list[Consolidation]:
        """The last hundred consolidations, newest first."""
        return await self._generations.consolidations(tenant)

    async def generations(self, tenant: str) -> list[GenerationView]:
        """Every generation that is kept, newest first; the last is 0, the checkpoint alone."""
        return await self._generations.views(tenant)

    async def activate_generation(self, tenant: str, number: int) -> GenerationView:
        """Makes a generation active for all replicas, from their next turn on; else NotFound or OtherModel."""
        await self._turns.grounds.following.load(tenant, number)
        return await self._generations.activate(tenant, number)

    async def quarantine(self, tenant: str) -> list[QuarantineView]:
        """The sessions that spoiled candidates for a generation, latest first."""
        return await self._generations.quarantine(tenant)

    async def let_out(self, tenant: str, session_id: str) -> None:
        """Has a session in quarantine tried again, or NotFound."""
        await self._generations.let_out(tenant, session_id)

    async def health(self) -> Health:
        """Liveness of the engine's thread; readiness: the store answers, not draining, queue below its mark."""
        return await self._pulse.health()

"""What turns stand on: a session under its lease, and its memory brought up from this replica's cache or the store.

Knows no turn in progress and commits nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from engine.config import EngineSettings, StoreSettings
from engine.core import Session, TurnRequest
from engine.errors import Conflict, OtherModel, StoreUnavailable
from engine.following import OTHER_MODEL, Following
from engine.model.hope import Hope, Memory
from engine.model.portable import unpack_row
from engine.model.shared import with_shared
from engine.model.weights import fingerprint
from engine.observer import Observer
from engine.seen_through import SeenThrough
from engine.sessions.commits import as_it_was
from engine.sessions.keeping import kept
from engine.sessions.past import of_another_model
from engine.sessions.records import Head, Lease, Version, nothing, now_iso
from engine.sessions.residency import Residency
from engine.sessions.snapshot import unpack
from engine.sessions.store import SessionStore


@dataclass(frozen=True)
class Ground:
    """What a turn stands on: the session as it was and its memory; a turn that learns nothing has no lease.

    The memory holds what the tenant's active generation knows, and the session names that generation. `back_to` is the
    earlier version that these are of; the session's number is the head's all the same.
    """

    session: Session
    memory: Memory
    lease: Lease | None
    back_to: Version | None = None


class Grounds:
    """Brings sessions up for turns, and keeps the memories this replica has lately used."""

    def __init__(
        self,
        model: Hope,
        store: SessionStore,
        settings: EngineSettings,
        store_settings: StoreSettings,
        observer: Observer,
        see_through: SeenThrough,
    ) -> None:
        self.model, self.store, self.observer = model, store, observer
        self.store_settings = store_settings
        self.fingerprint = fingerprint(model)
        self._residency: Residency[Memory] = Residency(settings.resident_bytes)
        self._see_through = see_through
        self.following = Following(model, store, self.fingerprint, observer)

    def forget(self, tenant: str, session_id: str) -> None:
        """Drops a session's memory from this replica."""
        self._residency.drop(tenant, session_id)

    @contextlib.asynccontextmanager
    async def stand(self, tenant: str, session_id: str, request: TurnRequest, arrived: float) -> AsyncIterator[Ground]:
        """The session under its lease (a turn that learns nothing needs none), and its memory."""
        if not session_id:
            now = now_iso()
            memory = await asyncio.to_thread(unpack_row, {}, self.model)
            yield await self.under_generation(tenant, Ground(Session("", now, now), memory, None))
            return
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
                if request.back_to is not None:
                    ground = await self._earlier(tenant, session, request.back_to, lease)
                else:
                    ground = Ground(*await self.bring_up(tenant, session), lease)
                yield await self.under_generation(tenant, ground)
        finally:
            if lease is not None:
                await self._see_through(self._give_back(lease))

    async def under_generation(self, tenant: str, ground: Ground) -> Ground:
        """The same with what the generation knows that is active now.

        It is looked up under the session's lease: nobody who saw an earlier one can still commit to the session.
        """
        number, shared = await self.following.active(tenant)
        session = replace(ground.session, generation=number)
        return replace(ground, session=session, memory=with_shared(ground.memory, shared))

    async def _earlier(self, tenant: str, session: Session, version: int, lease: Lease | None) -> Ground:
        """An earlier version to stand on; it is not kept in the cache, whose memories are heads."""
        record, blob = await self.store.load_version(tenant, session.id, version)
        then = record or nothing(session)
        try:
            memory = await self._unpacked(blob)
        except OtherModel as error:
            raise of_another_model(version) from error
        was = as_it_was(Head(session, 0), then).session
        return Ground(replace(was, version=session.version), memory, lease, then)

    async def _give_back(self, lease: Lease) -> None:
        # A lease that cannot be given back runs out by itself; the turn's own outcome is what counts.
        with contextlib.suppress(StoreUnavailable):
            await self.store.release(lease)

    async def bring_up(self, tenant: str, session: Session) -> tuple[Session, Memory]:
        """The head's memory, from this replica's cache or the store, and the session at that version.

        Without a lease the head may have moved on meanwhile; then it is the newer one.

        Raises:
            OtherModel: the memory did not grow in this model.
        """
        begun = time.monotonic()
        memory = self._residency.get(tenant, session)
        source = "resident"
        if memory is None:
            source = "redis"
            version, blob = await self.store.load_memory(tenant, session.id)
            memory = await self._unpacked(blob)
            session = replace(session, version=version)
            self.keep(tenant, session, memory)
        self.observer.stored("load", source, time.monotonic() - begun, session.memory_bytes)
        return session, memory

    async def _unpacked(self, blob: bytes | None) -> Memory:
        try:
            tensors = unpack(blob, fingerprint=self.fingerprint) if blob else {}
        except OtherModel:
            self.observer.stored("load", OTHER_MODEL, 0.0, len(blob or b""))
            raise
        return await asyncio.to_thread(unpack_row, tensors, self.model)

    def keep(self, tenant: str, session: Session, memory: Memory) -> None:
        size = sum(value.numel() * value.element_size() for value in memory.values())
        self._residency.put(tenant, session, memory, size)
        self.observer.resident(len(self._residency), self._residency.size_bytes)

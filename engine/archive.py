"""A session's past: its retained versions, back to one of them, a second session from one, and out into a file and in.

Memories pass through unread, bit for bit, but for what comes from outside. Knows no turn in progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from engine.config import StoreSettings
from engine.core import Session, Turn, VersionView
from engine.errors import Conflict, CorruptMemory, InvalidRequest, OtherModel, StoreUnavailable
from engine.model.hope import Hope
from engine.model.portable import fits, level_of, pack_row
from engine.sessions.chain import BEGINNING
from engine.sessions.commits import as_it_was
from engine.sessions.keeping import kept
from engine.sessions.past import num_turns_until, of_another_model, version_with
from engine.sessions.records import Commit, Head, Lease, nothing, now_iso
from engine.sessions.snapshot import check_model, pack, unpack
from engine.sessions.store import SessionStore
from engine.sessions.transfer import Export, read_export, write_export

# How long an undo waits for the turn that runs.
WAIT_S = 30.0
TURNS_AT_ONCE = 500


class Archive:
    """Looks into a session's past and goes back to it.

    Args:
        model: whose memories these are.
        fingerprint: of the model.
        store: holds them.
        settings: of the store.
        forget: drops a session's memory from this process's cache.
    """

    def __init__(
        self,
        model: Hope,
        fingerprint: str,
        store: SessionStore,
        settings: StoreSettings,
        forget: Callable[[str, str], None],
    ) -> None:
        self._model, self._fingerprint = model, fingerprint
        self._store, self._settings, self._forget = store, settings, forget

    async def versions(self, tenant: str, session_id: str) -> list[VersionView]:
        """See `Engine.versions`."""
        found = await self._store.versions(tenant, session_id)
        return [VersionView(one.version, one.turn_id, one.created_at, one.size_bytes) for one in found]

    async def rollback(self, tenant: str, session_id: str, version: int) -> Session:
        """See `Engine.rollback`."""
        async with self._alone(tenant, session_id) as (lease, session):
            return await self._go_back(lease, session, version)

    async def undo(self, tenant: str, session_id: str, turn_id: str) -> Session:
        """See `Engine.undo_turn`."""
        async with self._alone(tenant, session_id) as (lease, session):
            num_turns = await num_turns_until(self._store, tenant, session, turn_id)
            if num_turns < session.num_turns:
                raise Conflict(
                    "only a session's last turn can be undone, for the memory of the later ones stands on it: undo "
                    "those first, roll the session back, or delete it"
                )
            return await self._go_back(lease, session, await version_with(self._store, tenant, session, num_turns - 1))

    async def fork(self, tenant: str, session_id: str, version: int | None, new_id: str | None) -> Session:
        """See `Engine.fork`."""
        past = await self._at(tenant, session_id, version)
        self._check_model(past.memory, past.head.session.version)
        session = _begun(past.head.session, new_id)
        own = [replace(turn, session_id=session.id) for turn in past.turns]
        head = replace(past.head, session=session)
        return await self._store.adopt(tenant, head, past.memory, past.levels, own, past.history)

    async def export(self, tenant: str, session_id: str) -> bytes:
        """See `Engine.export_session`."""
        past = await self._at(tenant, session_id, None)
        head, memory = past.head, self._blank() if past.memory is None else past.memory
        export = Export(head.session, past.turns, head.num_consolidated_turns, past.history, memory)
        return await asyncio.to_thread(write_export, export)

    async def take_in(self, tenant: str, file: bytes, session_id: str | None) -> Session:
        """See `Engine.import_session`."""
        export = await asyncio.to_thread(read_export, file, self._fingerprint)
        levels = await asyncio.to_thread(self._levels_of, export.memory)
        old = export.session
        memory = export.memory if old.version else None
        session = _begun(replace(old, memory_bytes=len(memory or b""), generation=0), session_id)
        turns = [replace(turn, session_id=session.id) for turn in export.turns]
        last = (name for name, index in export.history.items() if index == len(turns) - 1 and ":" not in name)
        said = next(last, BEGINNING)
        head = Head(session, export.num_consolidated_turns, said)
        return await self._store.adopt(tenant, head, memory, levels, turns, export.history)

    @contextlib.asynccontextmanager
    async def _alone(self, tenant: str, session_id: str) -> AsyncIterator[tuple[Lease, Session]]:
        """The session while no turn of it runs."""
        lease = await self._store.acquire(tenant, session_id, secrets.token_hex(8), WAIT_S)
        try:
            async with kept(self._store, lease, self._settings.lease_ttl_s):
                yield lease, await self._store.get(tenant, session_id)
        finally:
            self._forget(tenant, session_id)
            # One that cannot be given back runs out by itself.
            with contextlib.suppress(StoreUnavailable):
                await self._store.release(lease)

    async def _go_back(self, lease: Lease, session: Session, version: int) -> Session:
        if session.version == version:
            return session
        record, memory = await self._store.load_version(lease.tenant, session.id, version)
        self._check_model(memory, version)
        back_to = record or nothing(session)
        blob = self._blank() if memory is None else memory
        commit = Commit(blob, back_to.levels, None, 0, None, "", secrets.token_hex(8), back_to=back_to)
        return (await self._store.commit(lease, session.version, commit)).session

    async def _at(self, tenant: str, session_id: str, version: int | None) -> _Past:
        """A session as it was at a version, by default the head."""
        head = await self._store.head(tenant, session_id)
        record, memory = await self._store.load_version(tenant, session_id, version)
        then = record or nothing(head.session)
        turns: list[Turn] = []
        while len(turns) < then.num_turns:
            wanted = min(TURNS_AT_ONCE, then.num_turns - len(turns))
            page = await self._store.turns_at(tenant, session_id, len(turns), wanted)
            if not page:
                raise Conflict("the session was rolled back meanwhile: read it again", param="version")
            turns += page
        digests = await self._store.history(tenant, session_id)
        history = {digest: index for digest, index in digests.items() if index < then.num_turns}
        return _Past(as_it_was(head, then), memory, then.levels, turns, history)

    def _check_model(self, memory: bytes | None, version: int) -> None:
        """Raises OtherModel where a version's memory is of another one; it may be exported, but not gone on with."""
        try:
            if memory is not None:
                check_model(memory, fingerprint=self._fingerprint)
        except OtherModel as error:
            raise of_another_model(version) from error

    def _blank(self) -> bytes:
        """A memory that has read nothing, as the store would keep it."""
        frame = self._model.config.chunk_projections
        return pack(pack_row(self._model.initial_memory(1), frame), fingerprint=self._fingerprint)

    def _levels_of(self, memory: bytes) -> tuple[str, ...]:
        """The levels a memory from outside holds; raises InvalidRequest where it is none of this model."""
        try:
            tensors = unpack(memory, fingerprint=self._fingerprint)
        except CorruptMemory as error:
            raise InvalidRequest("the memory in the file is damaged: send the file as it was written") from error
        if not fits(tensors, self._model):
            raise InvalidRequest("the memory in the file is not one of this model: send the file as it was written")
        return tuple(sorted({level_of(name) for name in tensors}))


@dataclass(frozen=True)
class _Past:
    """A session as it was: its head, memory, the levels in it, the turns until then and their digests."""

    head: Head
    memory: bytes | None
    levels: tuple[str, ...]
    turns: list[Turn]
    history: dict[str, int]


def _begun(session: Session, session_id: str | None) -> Session:
    """The same under an id of its own, made now. What one session may contribute, its copy may not once more."""
    now = now_iso()
    name = session_id or f"s-{secrets.token_hex(8)}"
    return replace(session, id=name, created_at=now, updated_at=now, contribute=False)

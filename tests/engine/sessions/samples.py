"""Sessions, turns and commits to try the store with."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.core import LevelReport, MemoryReport, Session, Timing, Turn, Usage
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.records import Commit, Head, Lease, now_iso
from engine.sessions.store import SessionStore
from tests.engine.sessions.wire import Wire

TENANT = "acme"
SESSION = "s-1"


def make_session(session_id: str = SESSION) -> Session:
    now = now_iso()
    return Session(id=session_id, created_at=now, updated_at=now, metadata={"topic": "Zürich 🏔"})


def make_turn(index: int, message: str = "Mein Hund heißt Max.", generation: int = 0) -> Turn:
    level = LevelReport("cms.fast", "session", index + 1, 0.1 + 0.2, 1 / 3)
    return Turn(
        id=f"turn-{index}",
        session_id=SESSION,
        index=index,
        created_at=now_iso(),
        message=message,
        reply="Schön!",
        finish_reason="stop",
        usage=Usage(7, 3, 10),
        memory=MemoryReport(index + 1, generation, True, 2.5, (level,)),
        timing=Timing(0.1, 0.2, 0.3, 0.4),
    )


def make_commit(
    memory: bytes,
    turn: Turn | None,
    *,
    key: str | None = None,
    digest: str = "body",
    commit_id: str | None = None,
) -> Commit:
    return Commit(
        memory=memory,
        levels=("titans", "cms.fast"),
        turn=turn,
        num_tokens=10,
        idempotency_key=key,
        request_digest=digest,
        commit_id=commit_id or secrets.token_hex(8),
    )


async def commit_turn(store: SessionStore, index: int, memory: bytes, key: str | None = None) -> Session:
    """One turn from lease to release."""
    async with held(store) as lease:
        return (await store.commit(lease, index, make_commit(memory, make_turn(index), key=key))).session


@asynccontextmanager
async def held(store: SessionStore, tenant: str = TENANT, session_id: str = SESSION) -> AsyncIterator[Lease]:
    """The session's lease for as long as the block lasts."""
    lease = await store.acquire(tenant, session_id, owner=secrets.token_hex(4), wait_s=1.0)
    try:
        yield lease
    finally:
        await store.release(lease)


async def everything(client: Redis) -> dict[str, object]:
    """Every key of the server with its value; a key's time to live is left out."""
    found: dict[str, object] = {}
    for key in await keys_like(client, "*"):
        kind = await client.type(key)
        if kind in (b"hash", "hash"):
            found[key] = await client.hgetall(key)
        elif kind in (b"zset", "zset"):
            found[key] = await client.zrange(key, 0, -1, withscores=True)
        else:
            found[key] = await client.get(key)
    return found


async def keys_like(client: Redis, pattern: str) -> list[str]:
    """The names of the server's keys that fit a pattern."""
    keys = [key async for key in client.scan_iter(pattern)]
    return sorted(key.decode() if isinstance(key, bytes) else key for key in keys)


@asynccontextmanager
async def frozen_writer(embedded: EmbeddedStore, session_id: str, memory: bytes) -> AsyncIterator[FrozenWriter]:
    """A writer that has laid its memory down and stands still before the decisive step."""
    async with Wire(embedded) as wire:
        store = await SessionStore.connect(wire.url, StoreSettings())
        lease = await store.acquire(TENANT, session_id, "frozen", 1.0)
        wire.hold_back(b"EVALSHA")
        task = asyncio.create_task(store.commit(lease, 0, make_commit(memory, make_turn(0))))
        await asyncio.wait_for(wire.held.wait(), 5)
        yield FrozenWriter(wire, task)
        task.cancel()  # for good: it never wakes
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


@dataclass(frozen=True)
class FrozenWriter:
    """A commit that stands still."""

    wire: Wire
    task: asyncio.Task[Head]

    async def wake(self) -> Head:
        """Lets it go on, and tells how it ended."""
        self.wire.let_go()
        return await self.task

"""The worker's line: sessions by the time they are due, each with one worker at a time, none ever lost.

Any replica may put a session in; a claim that its worker does not keep up goes to the next one. Knows nothing
of what is done to a session: that is fenced by its lease, so doing it twice is harmless.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from engine.errors import LeaseLost
from engine.sessions import keys
from engine.sessions.connection import Connection, Value
from engine.sessions.records import Work

_POLL_S = 0.25
_MAX_ATTEMPTS = 5
_MAX_DEAD = 1000


class ConsolidationQueue:
    """At least once: what is claimed is either finished or handed out again.

    Args:
        connection: to the store.
        claim_ttl_s: seconds a claim lives without `keep`.
    """

    def __init__(self, connection: Connection, claim_ttl_s: float = 60.0) -> None:
        self._connection = connection
        self._claim_ttl_ms = max(1, round(claim_ttl_s * 1000))

    async def put(self, tenant: str, session_id: str, delay_s: float) -> None:
        """Puts a session in line. See `SessionStore.enqueue_consolidation`."""
        name = keys.session_name(tenant, session_id)
        await self._connection.run("enqueue", [keys.WORK_DUE], [name, round(delay_s * 1000)])

    async def claim(self, consumer: str, block_s: float) -> Work | None:
        """Claims the next due session, waiting up to `block_s`. See `SessionStore.next_consolidation`."""
        deadline = time.monotonic() + block_s
        key_names = [keys.WORK_DUE, keys.WORK_CLAIMED, keys.WORK_TOKENS, keys.WORK_ATTEMPTS, keys.WORK_DEAD]
        while True:
            token = f"{consumer}:{secrets.token_hex(8)}"
            found = await self._connection.run(
                "claim", key_names, [token, self._claim_ttl_ms, _MAX_ATTEMPTS, _MAX_DEAD]
            )
            if found:
                tenant, session_id = keys.parse_session_name(found[0].decode())
                return Work(tenant, session_id, token, int(found[1]))
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            # Polling, not a blocking read: that holds a connection, and hangs where it outlives a timeout.
            await asyncio.sleep(min(left_s, _POLL_S))

    async def keep(self, work: Work) -> None:
        """Keeps a claim from going stale; raises LeaseLost where another worker has it."""
        name = keys.session_name(work.tenant, work.session_id)
        args: list[Value] = [name, work.token, self._claim_ttl_ms]
        if await self._connection.run("keep_claim", [keys.WORK_CLAIMED, keys.WORK_TOKENS], args) != b"OK":
            raise LeaseLost("another worker has taken this session over; nothing was written")

    async def finish(self, work: Work) -> None:
        """Ends a claim; one that another worker has by now is left to it."""
        name = keys.session_name(work.tenant, work.session_id)
        key_names = [keys.WORK_CLAIMED, keys.WORK_TOKENS, keys.WORK_ATTEMPTS]
        await self._connection.run("finish", key_names, [name, work.token])

    async def beat(self, consumer: str, ttl_s: float) -> None:
        """Says that this worker lives, and will say so again within `ttl_s`."""
        await self._connection.batch([["SET", keys.WORKER_ALIVE, consumer, "PX", max(1, round(ttl_s * 1000))]])

    async def has_worker(self) -> bool:
        """Whether any worker has said lately that it lives."""
        return bool((await self._connection.batch([["EXISTS", keys.WORKER_ALIVE]]))[0])

    async def forget(self, tenant: str, session_id: str) -> None:
        """Removes every trace of a deleted session."""
        name = keys.session_name(tenant, session_id)
        await self._connection.batch(
            [
                *(["ZREM", key, name] for key in (keys.WORK_DUE, keys.WORK_CLAIMED, keys.WORK_DEAD)),
                *(["HDEL", key, name] for key in (keys.WORK_TOKENS, keys.WORK_ATTEMPTS)),
            ]
        )

"""Leases: one holder at a time may commit to a session, and every new holder outnumbers the ones before.

Knows nothing of memories: a lease is an owner's name with a time to live, and a fence that only grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from engine.errors import LeaseLost, NotFound, Overloaded, StoreUnavailable
from engine.sessions.connection import Connection, Value
from engine.sessions.keys import SessionKeys
from engine.sessions.records import Lease

_FIRST_POLL_S = 0.005
_LONGEST_POLL_S = 0.25


class Leases:
    """Takes, prolongs and gives back leases.

    Args:
        connection: to the store.
        ttl_s: seconds a lease lives without renewal.
    """

    def __init__(self, connection: Connection, ttl_s: float) -> None:
        self._connection = connection
        self._ttl_ms = max(1, round(ttl_s * 1000))

    async def acquire(self, tenant: str, session_id: str, owner: str, wait_s: float) -> Lease:
        """Takes the lease, waiting up to `wait_s` for its holder. See `SessionStore.acquire`."""
        keys = SessionKeys(tenant, session_id)
        deadline = time.monotonic() + wait_s
        poll_s = _FIRST_POLL_S
        while True:
            outcome, number = await self._try(keys, owner)
            if outcome == b"OK":
                return Lease(tenant, session_id, owner, number)
            if outcome == b"GONE":
                raise NotFound(f"there is no session '{session_id}'", param="session_id")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Overloaded(
                    "another turn of this session is still running; try again when it has ended",
                    retry_after_s=max(1.0, number / 1000),
                )
            # Waiters that were turned away together do not come back together.
            await asyncio.sleep(min(left_s, poll_s * random.uniform(0.5, 1.0)))
            poll_s = min(_LONGEST_POLL_S, poll_s * 1.5)

    async def _try(self, keys: SessionKeys, owner: str) -> tuple[bytes, int]:
        """One attempt. A caller that goes away in the middle of it leaves no lease that nobody holds."""
        attempt = asyncio.ensure_future(self._connection.run("acquire", [keys.head, keys.lease], [owner, self._ttl_ms]))
        try:
            outcome, number = await asyncio.shield(attempt)
        except asyncio.CancelledError:
            # Where the store is gone as well, the lease runs out by itself.
            with contextlib.suppress(StoreUnavailable):
                outcome, number = await attempt
                if outcome == b"OK":
                    await self._connection.run("release", [keys.head, keys.lease], [owner, number])
            raise
        return outcome, int(number)

    async def renew(self, lease: Lease) -> None:
        """Prolongs a lease that is still held, else raises LeaseLost."""
        keys = SessionKeys(lease.tenant, lease.session_id)
        args: list[Value] = [lease.owner, lease.fence, self._ttl_ms]
        if await self._connection.run("renew", [keys.head, keys.lease], args) != b"OK":
            raise lease_lost()

    async def release(self, lease: Lease) -> None:
        """Gives the lease back; a lease that is no longer held is left to its holder."""
        keys = SessionKeys(lease.tenant, lease.session_id)
        await self._connection.run("release", [keys.head, keys.lease], [lease.owner, lease.fence])


def lease_lost() -> LeaseLost:
    """What a holder is told that is none any more."""
    return LeaseLost("the session was taken over or deleted while the turn ran; nothing was learned")

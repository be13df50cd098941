"""Turns of one session pass one at a time, in the order they came; different sessions do not meet.

For this process; between processes the session's lease does it. Knows no Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Hashable

from engine.errors import DeadlineExceeded


class Turnstile:
    """First come, first served, per key. A key nobody waits for takes no memory."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def enter(self, key: Hashable, deadline: float) -> AsyncIterator[None]:
        """Waits for the key's turn until the monotonic time `deadline`.

        Raises:
            DeadlineExceeded: it did not come in time.
        """
        lock, waiting = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, waiting + 1)
        try:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await lock.acquire()
            except TimeoutError:
                raise DeadlineExceeded(
                    "the session's earlier turns took longer than timeout_s; nothing was learned"
                ) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            lock, waiting = self._locks[key]
            if waiting == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, waiting - 1)

"""Is this replica well: its thread lives, it takes turns, its store answers. Knows no web."""

from __future__ import annotations

import time

from engine.admission import Admission
from engine.core import Health
from engine.errors import StoreUnavailable
from engine.loop import EngineLoop
from engine.sessions.store import SessionStore

TTL_S = 1.0


class HealthCheck:
    """Looks, and remembers what it saw for a second.

    Args:
        store, admission, loop: of the replica.
    """

    def __init__(self, store: SessionStore, admission: Admission, loop: EngineLoop) -> None:
        self._store, self._admission, self._loop = store, admission, loop
        self._seen: tuple[float, Health] | None = None

    async def now(self) -> Health:
        """See `Engine.health`."""
        if self._seen and time.monotonic() - self._seen[0] < TTL_S:
            return self._seen[1]
        health = await self._examine()
        self._seen = (time.monotonic(), health)
        return health

    async def _examine(self) -> Health:
        if not self._loop.alive:
            return Health(False, False, "the engine's thread does not respond")
        if self._admission.draining:
            return Health(True, False, "draining")
        if self._admission.full:
            return Health(True, False, "the queue is full")
        try:
            await self._store.ping()
        except StoreUnavailable:
            return Health(True, False, "the store does not answer")
        return Health(True, True)

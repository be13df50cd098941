"""Whether a replica lives and may be sent turns, with a reason a person can act on. Knows no session."""

from __future__ import annotations

import time

from engine.admission import Admission
from engine.core import Health
from engine.errors import StoreUnavailable
from engine.loop import EngineLoop
from engine.sessions.store import SessionStore

HEALTH_TTL_S = 1.0


class Pulse:
    """The replica's health; a finding stands for a second, so that probes cannot weigh on the store.

    Args:
        loop: the engine's thread.
        admission: its queue, and whether it drains.
        store: of the sessions.
    """

    def __init__(self, loop: EngineLoop, admission: Admission, store: SessionStore) -> None:
        self._loop, self._admission, self._store = loop, admission, store
        self._found: tuple[float, Health] | None = None

    async def health(self) -> Health:
        """See `Engine.health`."""
        if self._found and time.monotonic() - self._found[0] < HEALTH_TTL_S:
            return self._found[1]
        health = await self._examine()
        self._found = (time.monotonic(), health)
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

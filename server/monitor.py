"""Is the engine well: asks it once a second, remembers the answer, and measures how late the event loop runs.

Liveness reads only the remembered answer, so a store that hangs cannot make a healthy process look dead.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from engine import Health

if TYPE_CHECKING:
    from engine import Engine
    from server.metrics import Metrics

PERIOD_S = 1.0
# An answer older than this means that the question itself hangs: most likely on the store.
STALE_AFTER_S = 5.0


class Monitor:
    """Watches one engine from the event loop."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._health = Health(alive=True, ready=False, reason="starting")
        self._checked_at_s = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether the engine thread was working when it was last asked."""
        return self._health.alive

    @property
    def readiness(self) -> Health:
        """The last answer, or that there has been none for too long."""
        if time.monotonic() - self._checked_at_s > STALE_AFTER_S:
            return Health(self._health.alive, False, "the store does not answer")
        return self._health

    async def watch(self) -> None:
        """Ask until cancelled."""
        while True:
            self._health = await self._engine.health()
            self._checked_at_s = time.monotonic()
            await asyncio.sleep(PERIOD_S)
            late_s = time.monotonic() - self._checked_at_s - PERIOD_S
            self._metrics.event_loop_lag.observe(max(0.0, late_s))

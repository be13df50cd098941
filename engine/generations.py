"""Generations from the outside: have a tenant's sessions consolidated, see how that went, switch between generations.

The worker does the work; this asks for it and reads. Knows no turn.
"""

from __future__ import annotations

import asyncio
import time

from engine.core import Consolidation, GenerationView, QuarantineView
from engine.errors import Overloaded
from engine.sessions.generations import session_hash
from engine.sessions.store import SessionStore

POLL_S = 0.2
# Who still waits then asks again.
MOST_WAIT_S = 600.0
# How long a worker may take to show itself: it starts, or the store was away.
PATIENCE_S = 10.0
RUNNING = "running"


class Generations:
    """Asks for consolidations and switches generations.

    Args:
        store: where they are.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store, self._generations = store, store.generations

    async def consolidate(self, tenant: str, wait: bool, without: str | None) -> Consolidation:
        """See `Engine.consolidate`."""
        asked = await self._generations.open(tenant, without)
        await self._generations.hand_over(tenant)
        consolidation = asked.consolidation
        deadline = time.monotonic() + (MOST_WAIT_S if wait else 0.0)
        while consolidation.status == RUNNING and time.monotonic() < deadline:
            if not await self._worker_shows():
                raise Overloaded(
                    f"no worker runs: start one with `hope worker`; until then '{consolidation.id}' waits in line",
                    retry_after_s=PATIENCE_S,
                )
            await asyncio.sleep(POLL_S)
            consolidation = await self._generations.consolidation(tenant, consolidation.id)
        return consolidation

    async def _worker_shows(self) -> bool:
        """Whether there is a worker, or will be in a moment."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if await self._store.line.has_worker():
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(POLL_S)

    async def consolidation(self, tenant: str, consolidation_id: str) -> Consolidation:
        """See `Engine.consolidation`."""
        return await self._generations.consolidation(tenant, consolidation_id)

    async def consolidations(self, tenant: str) -> list[Consolidation]:
        """See `Engine.consolidations`."""
        return await self._generations.consolidations(tenant)

    async def views(self, tenant: str) -> list[GenerationView]:
        """See `Engine.generations`."""
        return await self._generations.views(tenant)

    async def activate(self, tenant: str, number: int) -> GenerationView:
        """See `Engine.activate_generation`."""
        await self._generations.activate(tenant, number)
        return next(view for view in await self._generations.views(tenant) if view.generation == number)

    async def quarantine(self, tenant: str) -> list[QuarantineView]:
        """See `Engine.quarantine`."""
        return await self._generations.quarantine.views(tenant)

    async def let_out(self, tenant: str, session_id: str) -> None:
        """See `Engine.let_out`."""
        session = await self._store.get(tenant, session_id)
        await self._generations.quarantine.let_out(tenant, session_id, session_hash(tenant, session))

    async def delete_session(self, tenant: str, session_id: str) -> list[int]:
        """See `Engine.delete_session`."""
        session = await self._store.get(tenant, session_id)
        # First kept out of what comes, then deleted: cut off in between, the deletion can be asked for again.
        learned = await self._generations.forget(tenant, session)
        await self._store.delete(tenant, session_id)
        if not (await self._store.list(tenant, 1, None))[0]:
            await self._generations.unschedule(tenant)
        return learned

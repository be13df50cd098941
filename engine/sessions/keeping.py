"""Keeps a lease alive while its holder works. Knows nothing of what the work is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from engine.errors import LeaseLost, NotFound, StoreUnavailable
from engine.sessions.records import Lease
from engine.sessions.store import SessionStore


@contextlib.asynccontextmanager
async def kept(store: SessionStore, lease: Lease | None, ttl_s: float) -> AsyncIterator[None]:
    """Renews a lease while the block runs. A lost one shows at the commit, which is fenced."""
    if lease is None:
        yield
        return

    async def renew() -> None:
        while True:
            await asyncio.sleep(ttl_s / 3)
            with contextlib.suppress(StoreUnavailable):
                await store.renew(lease)

    keeper = asyncio.create_task(renew())
    try:
        yield
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError, LeaseLost, NotFound):
            await keeper

"""Opens the store that the settings name, or starts the embedded one where they name none. Knows no session."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import StoreSettings
from engine.errors import HopeError
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore


@dataclass(frozen=True)
class Opened:
    """A store that answered.

    Attributes:
        url: where it is.
        embedded: the process that was started for it, if one was.
    """

    store: SessionStore
    url: str
    embedded: EmbeddedStore | None

    async def close(self) -> None:
        """Closes the connections, and stops what was started."""
        await self.store.close()
        if self.embedded:
            await self.embedded.stop()


async def open_store(settings: StoreSettings) -> Opened:
    """Connects to the store, or starts the embedded one.

    Raises:
        InvalidRequest: the store's URL or key cannot be used.
        Conflict: another server uses the embedded store's folder.
        StoreUnavailable: the store does not answer.
    """
    embedded = None if settings.redis_url else await EmbeddedStore.start(settings.data_dir)
    url = settings.redis_url or (embedded.url if embedded else "")
    store: SessionStore | None = None
    try:
        store = await SessionStore.connect(url, settings)
        await store.ping()
    except HopeError:
        if store:
            await store.close()
        if embedded:
            await embedded.stop()
        raise
    return Opened(store, url, embedded)

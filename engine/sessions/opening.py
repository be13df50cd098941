"""Opens the store that the settings name, or an embedded one. Knows no session."""

from __future__ import annotations

from engine.config import StoreSettings
from engine.errors import HopeError
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore


async def open_store(settings: StoreSettings) -> tuple[SessionStore, EmbeddedStore | None]:
    """A store that answers, and the embedded server it lies in, if that is ours: the caller stops it.

    Raises:
        InvalidRequest: the store's URL or key cannot be used.
        StoreUnavailable: the store does not answer.
    """
    embedded = None if settings.redis_url else await EmbeddedStore.start(settings.data_dir)
    store: SessionStore | None = None
    try:
        store = await SessionStore.connect(settings.redis_url or (embedded.url if embedded else ""), settings)
        await store.ping()
    except HopeError:
        if store:
            await store.close()
        if embedded:
            await embedded.stop()
        raise
    return store, embedded

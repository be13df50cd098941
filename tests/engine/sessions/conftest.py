"""A real store server for the tests of this folder, empty at the start of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    store = asyncio.run(EmbeddedStore.start(tmp_path_factory.mktemp("store")))
    yield store
    asyncio.run(store.stop())


@pytest.fixture
async def client(embedded: EmbeddedStore) -> AsyncIterator[Redis]:
    """A plain client beside the store's, to see what is really there."""
    client = Redis.from_url(embedded.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(embedded: EmbeddedStore, client: Redis) -> AsyncIterator[SessionStore]:
    store = await SessionStore.connect(embedded.url, StoreSettings(keep_versions=3))
    yield store
    await store.close()

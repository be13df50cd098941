"""What every test shares: one thread for tensors, no clock for generated examples, a store where one is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from engine.sessions.embedded import EmbeddedStore

torch.set_num_threads(1)
settings.register_profile("hope", deadline=None)
settings.load_profile("hope")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A real store for engines; tests use sessions of their own in it."""
    store = asyncio.run(EmbeddedStore.start(tmp_path_factory.mktemp("store")))
    yield store
    asyncio.run(store.stop())


@pytest.fixture
def redis_url(shared_store: EmbeddedStore) -> str:
    """Where the shared store listens."""
    return shared_store.url

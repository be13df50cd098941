"""A tiny model in a checkpoint folder, and a real store and a real engine over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis

from engine.config import CMS_FAST, CMS_MEDIUM, EngineSettings, LevelConfig, ModelConfig, StoreSettings
from engine.engine import Engine
from engine.model.hope import Hope
from engine.model.weights import load_checkpoint, save_checkpoint
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer
from tests.engine.consolidation.samples import FACTS, Recorder, Setting

TINY = ModelConfig(
    vocab_size=320,
    width=32,
    num_layers=2,
    num_heads=2,
    memory_hidden=8,
    projection_hidden=8,
    rate_hidden=4,
    chunk_memory=8,
    chunk_projections=8,
    levels=(
        LevelConfig(CMS_FAST, 16, "session", 0.1),
        LevelConfig(CMS_MEDIUM, 16, "session", 0.1),
    ),
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(FACTS * 3, TINY.vocab_size)
    save_checkpoint(folder, Hope(TINY), tokenizer)
    return folder


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    store = asyncio.run(EmbeddedStore.start(tmp_path_factory.mktemp("store")))
    yield store
    asyncio.run(store.stop())


@pytest.fixture
async def client(embedded: EmbeddedStore) -> AsyncIterator[Redis]:
    """A plain client beside the store's, to see what is really there; the store is empty at the start."""
    client = Redis.from_url(embedded.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(embedded: EmbeddedStore, client: Redis) -> AsyncIterator[SessionStore]:
    store = await SessionStore.connect(embedded.url, StoreSettings())
    yield store
    await store.close()


@pytest.fixture
async def setting(checkpoint: Path, embedded: EmbeddedStore, store: SessionStore) -> AsyncIterator[Setting]:
    """An engine that hands every session to the worker at once, and one session that was told the facts."""
    settings = EngineSettings(checkpoint=checkpoint, idle_consolidation_s=0.0)
    stores = StoreSettings(redis_url=embedded.url)
    engine = await Engine.open(settings, stores, Recorder())
    model, tokenizer = load_checkpoint(checkpoint)
    setting = Setting(engine, store, model, tokenizer, settings, stores)
    await engine.create_session(setting.tenant, setting.session_id, {}, False)
    for fact in FACTS:
        await setting.tell(fact)
    yield setting
    await engine.close()

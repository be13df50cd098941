"""Fixtures of the server's tests: a real engine with a tiny model on a real store, and a server around it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from openai import AsyncOpenAI
from redis.asyncio import Redis

from engine import Engine, StoreSettings
from engine.config import EngineSettings, ModelConfig
from engine.model.hope import Hope
from engine.model.weights import TOKENIZER_FILE, bundled_checkpoint, save_checkpoint
from engine.sessions.embedded import EmbeddedStore
from engine.tokenizer import Tokenizer
from server.metrics import Metrics
from server.settings import Settings
from tests.server.running import Running, running


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows nothing, but is quick."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(bundled_checkpoint() / TOKENIZER_FILE)
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=32,
        num_layers=1,
        num_heads=2,
        memory_hidden=8,
        projection_hidden=8,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, Hope(shape), tokenizer)
    return folder


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store that all tests share, one after the other."""
    store = asyncio.run(EmbeddedStore.start(tmp_path_factory.mktemp("store")))
    yield store.url
    asyncio.run(store.stop())


@pytest.fixture
def metrics() -> Metrics:
    """The counters of this test."""
    return Metrics()


@pytest.fixture
async def engine(checkpoint: Path, store_url: str, metrics: Metrics) -> AsyncIterator[Engine]:
    """The engine that every test of this folder serves; its store is empty."""
    client = Redis.from_url(store_url)
    await client.flushall()
    await client.aclose()
    settings = EngineSettings(checkpoint=checkpoint, drain_timeout_s=5)
    engine = await Engine.open(settings, StoreSettings(redis_url=store_url), metrics)
    yield engine
    await engine.close()


@pytest.fixture
async def live(engine: Engine, metrics: Metrics) -> AsyncIterator[Running]:
    """A server with default settings."""
    async with running(engine, Settings(), metrics) as server:
        yield server


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOPE_* variable of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("HOPE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
async def client(live: Running) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client, to that server."""
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0) as client:
        yield client

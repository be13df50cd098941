"""A real server in a thread of its own, and a worker beside it, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine import Engine, EngineSettings, StoreSettings, run_worker
from server.metrics import Metrics
from server.settings import Settings
from tests.server.conftest import checkpoint
from tests.server.running import running

__all__ = ["checkpoint"]


@pytest.fixture(scope="session")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server listens."""
    listening: list[int] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        metrics = Metrics()
        store = StoreSettings(data_dir=tmp_path_factory.mktemp("data"))
        engine = await Engine.open(EngineSettings(checkpoint=checkpoint), store, metrics)
        leaving = asyncio.Event()
        stores = replace(store, redis_url=engine.redis_url)
        worker = asyncio.create_task(run_worker(engine.settings, stores, Metrics(), leaving))
        async with running(engine, Settings(), metrics) as live:
            listening.append(live.port)
            ready.set()
            await asyncio.to_thread(stop.wait)
        leaving.set()
        await worker
        await engine.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    yield f"http://127.0.0.1:{listening[0]}"
    stop.set()
    thread.join()

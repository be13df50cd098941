"""A real server in a thread of its own, and a worker beside it, for clients that block or run elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import Engine, EngineSettings, StoreSettings, run_worker
from server.metrics import Metrics
from server.settings import Settings
from tests.server.running import running


@contextmanager
def serving(checkpoint: Path, data_dir: Path, settings: Settings, **engine_settings: Any) -> Iterator[str]:
    """Where it listens, until the block ends."""
    listening: list[int] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        metrics = Metrics()
        wanted = EngineSettings(checkpoint=checkpoint, **engine_settings)
        engine = await Engine.open(wanted, StoreSettings(data_dir=data_dir), metrics)
        leaving = asyncio.Event()
        stores = StoreSettings(data_dir=data_dir, redis_url=engine.redis_url)
        worker = asyncio.create_task(run_worker(engine.settings, stores, Metrics(), leaving))
        async with running(engine, settings, metrics) as live:
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

"""`hope serve` and `hope worker`: open what is needed, run until told to stop, close everything in order.

Reads no flags; `server/cli.py` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import uvicorn

from engine import Engine
from server.app import create_app
from server.child import WorkerChild
from server.lifecycle import DrainingServer
from server.metrics import Metrics, MetricsListener
from server.settings import SettingsError, check_exposure

if TYPE_CHECKING:
    from server.service import Service
    from server.settings import Settings

# A worker whose server is gone gets this long to leave a consolidation; being killed in one costs nothing.
_ORPHAN_GRACE_S = 10.0
# So long may the engine's thread keep the interpreter while the event loop waits for it; Python's own 5 ms would be
# added to an event again and again. Half of it under load, in `make load`.
SWITCH_INTERVAL_S = 0.0005


async def serve(settings: Settings) -> int:
    """Run the server until a signal, or until its engine dies. Returns the exit status."""
    check_exposure(settings.server)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    metrics = Metrics()
    engine = await Engine.open(settings.engine, settings.store, metrics)
    server = _build(engine, settings, metrics)
    try:
        async with _worker_beside(settings, engine.redis_url):
            with metrics_listener(settings, metrics):
                await server.serve()
    finally:
        if not server.force_exit:  # told twice to stop: nothing is waited for, and nothing that matters is lost
            await engine.close()
    return 1 if server.engine_died else 0


def _build(engine: Engine, settings: Settings, metrics: Metrics) -> DrainingServer:
    app = create_app(engine, settings, metrics)
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        log_config=None,
        log_level="warning",  # below, it logs paths of websockets, which name sessions, and what is said on them
        access_log=False,
        server_header=False,
        ws_max_size=settings.server.max_body_bytes,
        ws_per_message_deflate=False,
    )
    return DrainingServer(
        config,
        service.lifecycle,
        is_alive=lambda: service.monitor.alive,
        on_listening=lambda port: _introduce(settings, engine.model_name, port),
    )


async def work(settings: Settings, *, stop_with_parent: bool) -> int:
    """Run the worker until a signal or, as a child, until standard input closes. Returns the exit status."""
    if settings.store.redis_url is None:
        raise SettingsError("a worker needs the store that the server uses: set HOPE_REDIS_URL or --redis-url")
    if settings.server.metrics_port is not None:
        check_exposure(settings.server)
    from engine import run_worker  # only here: a server need not load what a worker does

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if stop_with_parent:
        threading.Thread(target=_await_orphanhood, args=(loop, stop), name="parent", daemon=True).start()
    metrics = Metrics()
    with metrics_listener(settings, metrics):
        await run_worker(settings.engine, settings.store, metrics, stop)
    return 0


@contextlib.contextmanager
def metrics_listener(settings: Settings, metrics: Metrics) -> Iterator[None]:
    """Inside, /metrics is served on its own port, if it has one."""
    server = settings.server
    if server.metrics_port is None:
        yield
        return
    try:
        listener = MetricsListener(metrics, server.host, server.metrics_port, server.api_keys)
    except OSError as error:
        raise SettingsError(f"cannot listen on {server.host}:{server.metrics_port}: {error.strerror}") from None
    try:
        yield
    finally:
        listener.close()


@contextlib.asynccontextmanager
async def _worker_beside(settings: Settings, redis_url: str) -> AsyncIterator[None]:
    if settings.server.worker:
        async with WorkerChild(settings, redis_url):
            yield
    else:
        yield


def _introduce(settings: Settings, model_name: str, port: int) -> None:
    host = settings.server.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    url = f"http://{shown}:{port}"
    data = "the Redis it was given" if settings.store.redis_url else settings.store.data_dir.resolve()
    key = '-H "Authorization: Bearer $KEY" ' if settings.server.api_keys else ""
    post = f"curl -s {key}-H 'Content-Type: application/json'"
    print(
        f"Hope ({model_name}) listens on {url}  (playground at /, reference at /docs)\n"
        f"Its data lies in {data}\n"
        "Try: "
        f"""{post} {url}/v1/sessions -d '{{"id":"me"}}'; """
        f"""{post} {url}/v1/sessions/me/turns -d '{{"message":"My dog is called Rufus."}}'\n"""
        "Or talk to it with: hope chat" + ("" if (shown, port) == ("127.0.0.1", 8000) else f" --url {url}"),
        flush=True,
    )


def _await_orphanhood(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Standard input closes when the server that started this worker is gone, however it went."""
    # Not through sys.stdin: its lock, held by a thread that waits, aborts an interpreter that ends.
    while os.read(sys.stdin.fileno(), 4096):
        continue
    logging.getLogger("hope.worker").info("the server is gone; stopping")
    with contextlib.suppress(RuntimeError):  # the loop may have ended first
        loop.call_soon_threadsafe(stop.set)
    time.sleep(_ORPHAN_GRACE_S)
    os._exit(0)

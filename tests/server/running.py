"""A real server on a real socket for one test: uvicorn in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from engine import EngineSettings
from server.app import create_app
from server.lifecycle import DrainingServer
from server.settings import ServerSettings, Settings

if TYPE_CHECKING:
    from engine import Engine
    from server.metrics import Metrics
    from server.service import Service


@dataclass(frozen=True)
class Running:
    """A server that listens, and how to speak to it."""

    port: int
    server: DrainingServer
    service: Service
    http: httpx2.AsyncClient
    task: asyncio.Task[None]

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def socket(self, session_id: str, **options: Any) -> connect:
        """A websocket to one session, used as `async with`."""
        return self.connected(f"/v1/sessions/{session_id}/stream", **options)

    def connected(self, path: str, **options: Any) -> connect:
        """A websocket, used as `async with`."""
        options = {"subprotocols": ["hope.v1"], "compression": None, "max_queue": None, **options}
        return connect(f"ws://127.0.0.1:{self.port}{path}", **options)

    async def new_session(self, session_id: str, **headers: str) -> dict[str, Any]:
        answer = await self.http.post("/v1/sessions", json={"id": session_id}, headers=headers)
        assert answer.status_code == 201, answer.text
        session: dict[str, Any] = answer.json()
        return session


@contextlib.asynccontextmanager
async def running(
    engine: Engine, settings: Settings, metrics: Metrics, send_buffer_bytes: int | None = None, port: int = 0
) -> AsyncIterator[Running]:
    """Serve until the block ends, on a free port where none is given."""
    app = create_app(engine, settings, metrics)
    listener = socket.create_server(("127.0.0.1", port))
    if send_buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws_max_size=settings.server.max_body_bytes,
        ws_per_message_deflate=False,
    )
    service: Service = app.state.service
    server = DrainingServer(config, service.lifecycle, is_alive=lambda: service.monitor.alive)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    port = listener.getsockname()[1]
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            while not (server.started and service.monitor.readiness.reason != "starting"):
                await asyncio.sleep(0.01)
                assert not task.done(), "the server ended at once"
            yield Running(port, server, service, http, task)
    finally:
        server.should_exit = True
        await task


def with_server(max_new_tokens: int = 1024, **changes: Any) -> Settings:
    """Default settings with some of the server's changed."""
    return Settings(ServerSettings(**changes), EngineSettings(max_new_tokens=max_new_tokens))


async def receive(connection: ClientConnection) -> Any:
    """The next event of a websocket."""
    async with asyncio.timeout(10):
        return json.loads(await connection.recv())


def slow_socket(port: int) -> socket.socket:
    """A connection that can hold very little, for a reader that does not read."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    raw.connect(("127.0.0.1", port))
    return raw


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must become true soon."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the condition is somebody else's and sets no event
            await asyncio.sleep(0.01)

"""A server killed with -9 in the middle of turns and started again on the same store and port: each is learned once."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
from hope_client import AsyncHopeClient, Turn, TurnEvent, TurnOptions

from engine import Engine, EngineSettings, StoreSettings
from server.metrics import Metrics
from server.settings import Settings
from tests.server.conftest import checkpoint, store_url
from tests.server.running import running

__all__ = ["checkpoint", "store_url"]

SPEAKS_LONG: TurnOptions = {"max_tokens": 120, "temperature": 0}


@asynccontextmanager
async def serving(port: int, store_url: str, checkpoint: Path) -> AsyncIterator[None]:
    """`hope serve`, ready; killed at the end."""
    flags = ["--port", str(port), "--redis-url", store_url, "--checkpoint", str(checkpoint), "--no-worker"]
    flags += ["--lease-ttl-s", "2", "--log-level", "error"]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "server.cli", "serve", *flags)
    try:
        async with httpx2.AsyncClient() as http, asyncio.timeout(60):
            while True:
                assert process.returncode is None, "the server ended while starting"
                try:
                    if (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                        break
                except httpx2.TransportError:
                    await asyncio.sleep(0.1)
        yield
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def serving_here(port: int, store_url: str, checkpoint: Path) -> AsyncIterator[None]:
    """Its successor, in this process: nothing has to be imported again."""
    metrics = Metrics()
    engine = await Engine.open(EngineSettings(checkpoint=checkpoint), StoreSettings(redis_url=store_url), metrics)
    async with running(engine, Settings(), metrics, port=port):
        yield
    await engine.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_turns_of_a_killed_server_are_learned_exactly_once(store_url: str, checkpoint: Path) -> None:
    port, speaking = free_port(), asyncio.Event()
    told: dict[str, list[TurnEvent]] = {"sse": [], "socket": []}

    async def listen(name: str, events: AsyncIterator[TurnEvent]) -> Turn:
        async for event in events:
            told[name].append(event)
            if all(len(heard) > 3 for heard in told.values()):
                speaking.set()
        assert event["type"] == "turn.completed"
        return event["turn"]

    async with AsyncHopeClient(f"http://127.0.0.1:{port}", max_attempts=100) as client, AsyncExitStack() as first:
        await first.enter_async_context(serving(port, store_url, checkpoint))
        for name in ("plain", *told):
            await client.create_session(name)
        async with client.stream("socket") as conversation:
            turns = [
                asyncio.create_task(client.turn("plain", "hello", **SPEAKS_LONG)),
                asyncio.create_task(listen("sse", client.turn_events("sse", "hello", **SPEAKS_LONG))),
                asyncio.create_task(listen("socket", conversation.turn("hello", **SPEAKS_LONG))),
            ]
            await speaking.wait()
            assert not any(turn.done() for turn in turns)
            await first.aclose()
            async with serving_here(port, store_url, checkpoint):
                for name, turn in zip(("plain", *told), await asyncio.gather(*turns), strict=True):
                    assert [kept["id"] async for kept in client.transcript(name)] == [turn["id"]]
                    assert (await client.session(name))["version"] == 1
    for events in told.values():
        assert [event["type"] for event in events].count("turn.restarted") == 1

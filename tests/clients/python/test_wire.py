"""What the client makes of a server that is away, is leaving, has had enough, or is none."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hope_client import AsyncHopeClient, ConnectionLost, RateLimited, Unauthorized, Unreachable

from engine import Engine, EngineSettings, StoreSettings
from server.auth import parse_keys
from server.metrics import Metrics
from tests.clients.python.cutting import cutting
from tests.server.conftest import engine, live, metrics, store_url
from tests.server.running import Running, running, until, with_server

__all__ = ["engine", "live", "metrics", "store_url"]


async def test_a_leaving_server_is_waited_out(live: Running, url: str) -> None:
    async with cutting(f"http://127.0.0.1:{live.port}") as proxy, AsyncHopeClient(proxy.url) as client:
        await client.create_session("moves")
        held = asyncio.create_task(client.turn("moves", "hello", max_tokens=100, temperature=0))
        await until(lambda: not live.service.lifecycle.idle)
        async with AsyncHopeClient(url) as successor:
            await successor.create_session("moves")
        live.server.handle_exit(signal.SIGTERM, None)
        await until(lambda: live.service.lifecycle.draining)
        refused = asyncio.create_task(client.turn("moves", "hello", max_tokens=1, timeout_s=9))
        await until(lambda: b'reason="draining"' in live.service.metrics.render())
        proxy.upstream = url
        assert (await held)["usage"]["completion_tokens"] > 50, "what ran was seen through"
        assert (await refused)["index"] == 0, "what was refused was learned by the successor"


async def test_a_limit_that_outlasts_the_deadline_is_told_at_once(store_url: str, checkpoint: Path) -> None:
    metrics, settings = Metrics(), EngineSettings(checkpoint=checkpoint, turns_per_minute=1)
    engine = await Engine.open(settings, StoreSettings(redis_url=store_url), metrics)
    keys = parse_keys("secret:one")
    async with running(engine, with_server(api_keys=keys), metrics) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with AsyncHopeClient(url, "secret", timeout_s=5) as client:
            await client.create_session("s")
            await client.turn("s", "hello", max_tokens=1, timeout_s=5)
            begun = time.monotonic()
            with pytest.raises(RateLimited) as limited:
                await client.turn("s", "hello", max_tokens=1, timeout_s=5)
            assert (limited.value.status, limited.value.code) == (429, "rate_limited")
            assert limited.value.retry_after_s is not None
            assert limited.value.retry_after_s > 10
            assert time.monotonic() - begun < 5
        async with AsyncHopeClient(url) as stranger:
            with pytest.raises(Unauthorized):
                await stranger.session("s")
            with pytest.raises(Unauthorized):
                async with stranger.stream("s"):
                    pass
    await engine.close()


async def test_nobody_there_is_said_at_once() -> None:
    async with AsyncHopeClient("http://127.0.0.1:9") as client:
        begun = time.monotonic()
        with pytest.raises(Unreachable, match=r"No server answers at http://127\.0\.0\.1:9"):
            await client.turn("s", "hello")
        with pytest.raises(Unreachable, match="No server answers"):
            async with client.stream("s"):
                pass
        assert time.monotonic() - begun < 2
    for address in ("127.0.0.1", "ftp://127.0.0.1"):
        async with AsyncHopeClient(address) as client:
            with pytest.raises(Unreachable, match="is no address of a server"):
                await client.session("s")
            with pytest.raises(Unreachable, match="is no address of a server"):
                async with client.stream("s"):
                    pass


async def answering(status: str) -> AsyncIterator[str]:
    """An HTTP server that is none of ours: whatever is asked, it answers with that status and a page."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "502 Bad Gateway"])
async def test_what_is_no_hope_server_is_called_so(status: str) -> None:
    async for url in answering(status):
        async with AsyncHopeClient(url, max_attempts=2) as client:
            expected = ConnectionLost if status.startswith("502") else Unreachable
            with pytest.raises(expected, match=status[:3]):
                await client.session("s")
            with pytest.raises(expected, match=status[:3]):
                async with client.stream("s"):
                    pass

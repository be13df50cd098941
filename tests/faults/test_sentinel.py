"""A store that fails over: Sentinels name another server, and sessions go on there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.errors import StoreUnavailable
from tests.engine.sessions.samples import SESSION, TENANT, commit_turn, make_session
from tests.engine.sessions.servers import Server, free_port, server, told
from tests.engine.sessions.test_address import at


async def test_sentinels_name_the_server_and_after_its_death_the_next(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(server(tmp_path / "first"))
        replica = ["--replicaof", f"127.0.0.1 {first.port}", "--repl-diskless-sync-delay", "0"]
        second = await stack.enter_async_context(server(tmp_path / "second", *replica))
        watcher = await stack.enter_async_context(_sentinel(tmp_path / "watcher", first))
        nobody = free_port()
        store = await stack.enter_async_context(
            at(f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{watcher.port}/hope")
        )
        await store.ping()
        await store.create(TENANT, make_session())
        await commit_turn(store, 0, b"one", key="key")
        async with first.client() as client:
            assert await client.wait(1, 5000) == 1, "the replica has it"
        async with watcher.client() as client:
            while not await told(client, "SENTINEL REPLICAS", "hope"):  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.05)
        first.kill()
        with pytest.raises(StoreUnavailable):
            await store.ping()
        deadline = time.monotonic() + 30
        while True:
            try:
                await commit_turn(store, 1, b"two")
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline, "nobody took over"
                await asyncio.sleep(0.1)
        assert await store.load_memory(TENANT, SESSION) == (2, b"two")
        assert await store.load_memory(TENANT, SESSION, 1) == (1, b"one")
        async with second.client() as client:
            assert (await client.role())[0] in (b"master", "master")
        async with at(f"redis+sentinel://127.0.0.1:{watcher.port}/other") as other:
            with pytest.raises(StoreUnavailable, match="no Sentinel names a server"):
                await other.ping()


@contextlib.asynccontextmanager
async def _sentinel(folder: Path, watched: Server) -> AsyncIterator[Server]:
    folder.mkdir()  # noqa: ASYNC240 - nothing runs beside it
    (folder / "sentinel.conf").write_text(
        f"sentinel monitor hope 127.0.0.1 {watched.port} 1\n"
        "sentinel down-after-milliseconds hope 300\n"
        "sentinel failover-timeout hope 2000\n"
    )
    async with server(folder, "sentinel.conf", "--sentinel") as running:
        yield running

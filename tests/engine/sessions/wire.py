"""A unix socket between a client and the store that can fail as networks do, at a chosen command."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from types import TracebackType

from engine.sessions.embedded import EmbeddedStore


class Wire:
    """Hands bytes on in both directions, until told otherwise.

    Attributes:
        url: what the client connects to.
        held: set once a command was held back.
        num_lost: replies that were lost.
    """

    def __init__(self, embedded: EmbeddedStore) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="wire-")
        self._here = str(Path(self._folder.name) / "wire.sock")
        self._there = embedded.url.removeprefix("unix://")
        self._hold_back: bytes | None = None
        self._lose_reply_to: bytes | None = None
        self._goes_down = False
        self._down = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = f"unix://{self._here}"
        self.held = asyncio.Event()
        self._let_go = asyncio.Event()
        self.num_lost = 0

    def hold_back(self, command: bytes) -> None:
        """The next request with this word does not arrive until let go, nor what follows it."""
        self._hold_back = command

    def let_go(self) -> None:
        """What was held back arrives."""
        self._let_go.set()

    def lose_reply(self, command: bytes, *, and_go_down: bool) -> None:
        """The next request with this word arrives; the answer does not, and the wire may stay down."""
        self._lose_reply_to = command
        self._goes_down = and_go_down

    def come_back(self) -> None:
        """Connections are accepted again."""
        self._down = False

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_unix_server(self._accept, self._here)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._folder.cleanup()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A broken connection is what this is for.
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            if not self._down:
                await self._carry(reader, writer)
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_unix_connection(self._there)
        replies = asyncio.create_task(_pass_on(store_reader, writer))
        try:
            while data := await reader.read(65536):
                if self._hold_back is not None and self._hold_back in data:
                    self._hold_back = None
                    self.held.set()
                    await self._let_go.wait()
                loses = self._lose_reply_to is not None and self._lose_reply_to in data
                if loses:
                    self._lose_reply_to = None
                    self.num_lost += 1
                    self._down = self._goes_down
                    replies.cancel()
                    await asyncio.gather(replies, return_exceptions=True)
                store_writer.write(data)
                await store_writer.drain()
                if loses:
                    await store_reader.read(1)  # it has happened; nobody will hear of it
                    return
        finally:
            # Closed before anything is awaited: a second cancellation may come at any await.
            store_writer.close()
            replies.cancel()
            await asyncio.gather(replies, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()

"""A way to the server that breaks when told to: a TCP proxy that cuts both ends at a word in the server's answer."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

_REQUEST_LINE = re.compile(r"^([A-Z]+ /\S*) HTTP/1\.1\r$", re.MULTILINE)


class Cutting:
    """Forwards bytes to a server of this machine.

    Attributes:
        upstream: the server's address; changes with the next connection.
        asked: method and target of every HTTP request.
        cut_at: what the server is about to say when the connection breaks, before any of it is forwarded; used up.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.asked: list[str] = []
        self.cut_at: list[bytes] = []
        self.port = 0
        self._running: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client has come."""
        task = asyncio.create_task(self._forward(reader, writer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Break what is still open."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            try:
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.upstream).port)
            except ConnectionRefusedError:
                return
            async with _closing(up_writer):
                asking = asyncio.create_task(self._ask(reader, up_writer))
                try:
                    await self._answer(up_reader, writer)
                finally:
                    asking.cancel()
                    await asyncio.wait({asking})

    async def _ask(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> None:
        while asked := await reader.read(65536):
            self.asked += _REQUEST_LINE.findall(asked.decode("latin-1"))
            up_writer.write(asked)
            await up_writer.drain()
        up_writer.close()

    async def _answer(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (said := await up_reader.read(65536)) and not self._cuts(said):
            writer.write(said)
            await writer.drain()

    def _cuts(self, said: bytes) -> bool:
        if self.cut_at and self.cut_at[0] in said:
            del self.cut_at[0]
            return True
        return False


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Closes one end; that the other end was faster is no failure of a way."""
    try:
        with contextlib.suppress(ConnectionError):
            yield
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def cutting(upstream: str) -> AsyncIterator[Cutting]:
    """The proxy, listening until the block ends."""
    proxy = Cutting(upstream)
    server = await asyncio.start_server(proxy.take, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()

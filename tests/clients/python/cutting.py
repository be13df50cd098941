"""A way to the server that breaks when told to: a TCP proxy that cuts both ends at a word in the server's answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class Cutting:
    """Forwards bytes to a server of this machine.

    Attributes:
        upstream: the server's address; changes with the next connection.
        cut_at: what the server is about to say when the connection breaks, before any of it is forwarded; used up.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.cut_at: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.upstream).port)
        except ConnectionRefusedError:
            writer.transport.abort()
            return
        asking = asyncio.create_task(_copy(reader, up_writer))
        try:
            while (said := await up_reader.read(65536)) and not self._cuts(said):
                writer.write(said)
                await writer.drain()
        except ConnectionError:
            said = b""  # the client left
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            if said:
                writer.transport.abort()
            for one in (writer, up_writer):
                one.close()

    def _cuts(self, said: bytes) -> bool:
        if self.cut_at and self.cut_at[0] in said:
            del self.cut_at[0]
            return True
        return False


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while asked := await reader.read(65536):
            writer.write(asked)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def cutting(upstream: str) -> AsyncIterator[Cutting]:
    """The proxy, listening until the block ends."""
    proxy = Cutting(upstream)
    server = await asyncio.start_server(proxy.forward, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()

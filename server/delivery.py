"""How the events of a turn reach one reader: closed properly at the source, bounded on the way.

Serves Server-Sent Events and websockets alike; knows neither's framing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Self

from engine import TurnCompleted

if TYPE_CHECKING:
    from types import TracebackType

    from engine import TurnEvent


class SlowReader(Exception):
    """The reader stopped reading: its backlog is full, or one write took too long. It is cut off."""


def turn_events(turn: AsyncIterator[TurnEvent]) -> aclosing[AsyncGenerator[TurnEvent, None]]:
    """The events of one turn of the engine, to be used as `async with turn_events(...) as events`.

    However the block is left before the last event, the turn is cancelled at once and not when the garbage
    collector comes by.
    """
    return aclosing(_polite(turn))


async def _polite(events: AsyncIterator[TurnEvent]) -> AsyncGenerator[TurnEvent, None]:
    """The same events, with a breath for other tasks after each: tokens may outrun the sockets.

    Up to Python 3.11 `asyncio.wait_for`, and so a library that uses it, can swallow a cancellation. The task
    still remembers that it was asked, so a turn that goes on regardless is cancelled at its next event;
    unless that is the last, for then it is durable.
    """
    task = asyncio.current_task()
    try:
        async for event in events:
            if task is not None and task.cancelling() and not isinstance(event, TurnCompleted):
                raise asyncio.CancelledError
            yield event
            await asyncio.sleep(0)
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


class Outbox:
    """A bounded backlog of texts on their way to one reader; whoever puts never waits.

    Args:
        send: writes one text to the reader.
        max_events: texts that may wait.
        send_timeout_s: seconds one write may take.
        keep_alive: text to send after every `keep_alive_s` of silence; None sends nothing.
    """

    def __init__(
        self,
        send: Callable[[str], Awaitable[None]],
        *,
        max_events: int,
        send_timeout_s: float,
        keep_alive: str | None = None,
        keep_alive_s: float = 15.0,
    ) -> None:
        self._send = send
        self._waiting: asyncio.Queue[str] = asyncio.Queue(max_events)
        self._send_timeout_s = send_timeout_s
        self._keep_alive = keep_alive
        self._keep_alive_s = keep_alive_s if keep_alive is not None else None

    async def __aenter__(self) -> Self:
        self.writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.cancel()
        await asyncio.wait({self.writer})

    def put(self, text: str) -> None:
        """Add a text to the backlog.

        Raises:
            SlowReader: the backlog is full, or the writer has given up.
        """
        if self.writer.done() or self._waiting.full():
            raise SlowReader
        self._waiting.put_nowait(text)

    async def flush(self) -> None:
        """Wait until everything has been handed to the socket.

        Raises:
            SlowReader: the writer has given up.
        """
        empty = asyncio.create_task(self._waiting.join())
        try:
            await asyncio.wait({empty, self.writer}, return_when=asyncio.FIRST_COMPLETED)
            if not empty.done():
                raise SlowReader
        finally:
            empty.cancel()
            await asyncio.wait({empty})

    async def _write(self) -> None:
        """Send until cancelled; ends by itself only when the reader is too slow."""
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    text, waited = await self._waiting.get(), True
            except TimeoutError:
                text, waited = self._keep_alive or "", False
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    # A reader that has left is no slow reader: whoever listens for its leaving ends the turn.
                    with suppress(ConnectionError):
                        await self._send(text)
            except TimeoutError:
                return
            if waited:
                self._waiting.task_done()

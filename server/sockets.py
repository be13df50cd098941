"""Turns over one websocket: many on it, one at a time.

A socket is one reader, one writer and at most one running turn. A bad frame is answered and survived. How a turn runs
the engine knows, and how it is worded whoever opens the socket; here it is only carried.
"""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from engine import Conflict, HopeError, InvalidRequest, TurnCancelled, TurnCompleted, TurnEvent
from server.delivery import Outbox, SlowReader, turn_events
from server.errors import CLOSE_OVERLOADED, unexpected
from server.service import Service
from server.wording import Wording

logger = logging.getLogger("hope.server")

# A reader that stopped reading also stalls the closing handshake; it gets this long to hear the reason.
_CLOSE_TIMEOUT_S = 1.0


class TurnSocket(ABC):
    """One accepted websocket.

    Args:
        socket: accepted.
        service: counts it, and bounds its backlog.
    """

    busy = "An answer is still being given on this socket; wait for its end."

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket = socket
        self._service = service
        self._outbox = Outbox(
            self._send_text,
            max_events=service.settings.server.outbox_events,
            send_timeout_s=service.settings.server.send_timeout_s,
        )
        self._speaking: asyncio.Task[None] | None = None  # the turn that has not yet put its last event
        self._turns: set[asyncio.Task[None]] = set()  # it, and those whose last event is still on its way
        self._cancel_asked = False
        self._leaving = False

    async def serve(self) -> None:
        """Until the client leaves, or is cut off because it stopped reading."""
        with self._service.metrics.sockets.track_inprogress():
            await self._serve()

    @abstractmethod
    def greet(self) -> None:
        """What is sent first."""

    @abstractmethod
    def obey(self, frame: Any) -> None:
        """Does what a frame asks for, which was JSON; what it raises is answered."""

    @abstractmethod
    def refuse(self, error: HopeError, frame: Any) -> None:
        """Answers a frame that could not be obeyed; None stands for one that was no JSON."""

    def send(self, *events: dict[str, Any]) -> None:
        """Puts these in the backlog."""
        for event in events:
            self._outbox.put(json.dumps(event, ensure_ascii=False))

    def start(self, turn: AsyncIterator[TurnEvent], wording: Wording) -> None:
        """Lets a turn run beside the reader."""
        self._cancel_asked = False
        self._speaking = asyncio.create_task(self._run(turn, wording))
        self._turns.add(self._speaking)
        self._speaking.add_done_callback(self._turns.discard)

    def check_free(self) -> None:
        """Raises Conflict while a turn runs."""
        if self._speaking is not None:
            raise Conflict(self.busy)

    def cancel(self) -> None:
        """Stops the turn that runs, if one does."""
        if self._speaking is not None and not self._cancel_asked:
            # Once only: a second one would interrupt the engine while it undoes the turn.
            self._cancel_asked = True
            self._speaking.cancel()

    async def _serve(self) -> None:
        async with self._outbox as outbox:
            self.greet()
            reader = asyncio.create_task(self._read())
            try:
                await asyncio.wait({reader, outbox.writer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._leaving = True
                leaving = {reader, *self._turns}
                for task in leaving:
                    task.cancel()
                await asyncio.wait(leaving)
        if reader.cancelled() or isinstance(reader.exception(), SlowReader):
            await self._cut_off()
        else:
            reader.result()

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                if self._speaking is not None:
                    self._service.metrics.disconnects.inc()
                return
            frame: Any = None
            try:
                frame = _parse(message.get("text"))
                self.obey(frame)
            except HopeError as error:
                self.refuse(error, frame)
            # Frames that are already here are received without waiting; a turn must start before its cancel.
            await asyncio.sleep(0)

    async def _run(self, turn: AsyncIterator[TurnEvent], wording: Wording) -> None:
        """One turn, until its last event has been handed to the socket: only then may the server stop."""
        with self._service.lifecycle.turn():
            try:
                await self._speak(turn, wording)
                await self._outbox.flush()
            except SlowReader:
                self._outbox.writer.cancel()

    async def _speak(self, turn: AsyncIterator[TurnEvent], wording: Wording) -> None:
        failure: HopeError | None = None
        try:
            async with turn_events(turn) as events:
                async for event in events:
                    if isinstance(event, TurnCompleted):
                        self._speaking = None  # before the client hears of it, for it may start the next at once
                    self.send(*wording.event(event))
        except asyncio.CancelledError:
            if self._leaving:
                raise
            failure = TurnCancelled("The turn was cancelled; nothing was learned.")
        except SlowReader:
            raise
        except HopeError as error:
            failure = error
        except Exception as error:  # a socket outlives its turns: whatever it was, the client must be told
            failure = unexpected(error)
        if failure is not None:
            if not isinstance(failure, TurnCancelled):
                self._service.metrics.failed(failure.code)
            self._speaking = None
            self.send(*wording.failure(failure))

    async def _send_text(self, text: str) -> None:
        try:
            await self._socket.send_text(text)
        except WebSocketDisconnect as error:
            raise ConnectionError from error

    async def _cut_off(self) -> None:
        self._service.metrics.slow_drops.inc()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._socket.close(CLOSE_OVERLOADED, "the client stopped reading")
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            logger.info("a websocket that had stopped reading was dropped")


def _parse(text: str | None) -> Any:
    if text is None:
        raise InvalidRequest("Send text frames with JSON; binary frames are not understood.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest("The frame is not valid JSON.") from None

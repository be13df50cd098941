"""Turns over a websocket: many on one socket, one at a time.

A socket is one reader, one writer and at most one running turn. A bad frame is answered and survived. How a
turn runs the engine knows; here it is only framed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from engine import (
    Conflict,
    Draining,
    HopeError,
    InvalidRequest,
    Session,
    TurnCancelled,
    TurnCompleted,
    TurnCreated,
    TurnRequest,
)
from server.auth import SUBPROTOCOL, Caller
from server.delivery import Outbox, SlowReader, turn_events
from server.errors import CLOSE_OVERLOADED, error_body, from_validation, unexpected
from server.schemas import CLIENT_FRAME, ClientFrame, PingFrame, SessionId, TurnCreateFrame, turn_event
from server.service import Service, Serving

logger = logging.getLogger("hope.server")

router = APIRouter(prefix="/v1/sessions", tags=["turns"])

# A reader that stopped reading also stalls the closing handshake; it gets this long to hear the reason.
_CLOSE_TIMEOUT_S = 1.0


async def _open_session(session_id: SessionId, caller: Caller, service: Serving) -> Session:
    """The session, or the error that refuses the socket before anything runs on it."""
    if service.lifecycle.draining:
        raise Draining("The server is stopping; connect again in a moment.")
    return await service.engine.session(caller.tenant, session_id)


@router.websocket("/{session_id}/stream")
async def stream_turns(
    socket: WebSocket, caller: Caller, session: Annotated[Session, Depends(_open_session)], service: Serving
) -> None:
    """Greet, then serve turns until either side leaves."""
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
    with service.metrics.sockets.track_inprogress():
        await TurnSocket(socket, caller.tenant, session, service).serve()


class TurnSocket:
    """One accepted websocket of one session."""

    def __init__(self, socket: WebSocket, tenant: str, session: Session, service: Service) -> None:
        self._socket = socket
        self._tenant = tenant
        self._session = session
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
        async with self._outbox as outbox:
            self._send({"type": "session.ready", "session": asdict(self._session)})
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
            try:
                self._obey(_parse(message.get("text")))
            except HopeError as error:
                self._send({"type": "error", **error_body(error)})
            # Frames that are already here are received without waiting; a turn must start before its cancel.
            await asyncio.sleep(0)

    def _obey(self, frame: ClientFrame) -> None:
        if isinstance(frame, PingFrame):
            self._send({"type": "pong"})
        elif isinstance(frame, TurnCreateFrame):
            self._start(frame)
        elif self._speaking is not None and not self._cancel_asked:
            # Once only: a second one would interrupt the engine while it undoes the turn.
            self._cancel_asked = True
            self._speaking.cancel()

    def _start(self, frame: TurnCreateFrame) -> None:
        if self._speaking is not None:
            raise Conflict("A turn is still running on this socket; wait for its end or send turn.cancel.")
        request = frame.turn.to_request(self._service.settings.engine.max_new_tokens, frame.idempotency_key)
        self._cancel_asked = False
        self._speaking = asyncio.create_task(self._run(request))
        self._turns.add(self._speaking)
        self._speaking.add_done_callback(self._turns.discard)

    async def _run(self, request: TurnRequest) -> None:
        """One turn, until its last event has been handed to the socket: only then may the server stop."""
        with self._service.lifecycle.turn():
            try:
                await self._speak(request)
                await self._outbox.flush()
            except SlowReader:
                self._outbox.writer.cancel()

    async def _speak(self, request: TurnRequest) -> None:
        turn_id: str | None = None
        last: dict[str, Any] | None = None
        try:
            turn = self._service.engine.turn(self._tenant, self._session.id, request)
            async with turn_events(turn) as events:
                async for event in events:
                    if isinstance(event, TurnCreated):
                        turn_id = event.turn_id
                    elif isinstance(event, TurnCompleted):
                        self._speaking = None  # before the client hears of it, for it may start the next at once
                    self._send(turn_event(event))
        except asyncio.CancelledError:
            if self._leaving:
                raise
            last = {"type": "turn.cancelled", "turn_id": turn_id}
        except TurnCancelled:
            last = {"type": "turn.cancelled", "turn_id": turn_id}
        except SlowReader:
            raise
        except HopeError as error:
            self._service.metrics.failed(error.code)
            last = _error_event(error, turn_id)
        except Exception as error:  # a socket outlives its turns: whatever it was, the client must be told
            last = _error_event(unexpected(error), turn_id)
        if last is not None:
            self._speaking = None
            self._send(last)

    async def _send_text(self, text: str) -> None:
        try:
            await self._socket.send_text(text)
        except WebSocketDisconnect as error:
            raise ConnectionError from error

    def _send(self, event: dict[str, Any]) -> None:
        self._outbox.put(json.dumps(event, ensure_ascii=False))

    async def _cut_off(self) -> None:
        self._service.metrics.slow_drops.inc()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._socket.close(CLOSE_OVERLOADED, "the client stopped reading")
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            logger.info("a websocket that had stopped reading was dropped")


def _parse(text: str | None) -> ClientFrame:
    if text is None:
        raise InvalidRequest("Send text frames with JSON; binary frames are not understood.")
    try:
        return CLIENT_FRAME.validate_python(json.loads(text))
    except ValidationError as error:
        raise from_validation(error.errors()) from None
    except (ValueError, RecursionError):
        raise InvalidRequest("The frame is not valid JSON.") from None


def _error_event(error: HopeError, turn_id: str | None) -> dict[str, Any]:
    event = {"type": "error", **error_body(error)}
    return {**event, "turn_id": turn_id} if turn_id else event

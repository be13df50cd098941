"""Turns over a websocket: many on one socket, one at a time, and a new socket where one was lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any, Unpack

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from hope_client.contract import Session, TurnEvent, TurnOptions
from hope_client.errors import (
    ConnectionLost,
    Forbidden,
    HopeRequestError,
    ServerFailure,
    TooLarge,
    Unreachable,
    from_event,
)
from hope_client.turns import DEFAULT_TIMEOUT_S, RunningTurn, new_key
from hope_client.wire import BAD_GATEWAYS, Wire, path_of

SUBPROTOCOL = "hope.v1"
CANCEL = {"type": "turn.cancel"}
# Close codes after which the same again would end the same.
_FINAL_CLOSES: dict[int, type[HopeRequestError]] = {1008: Forbidden, 1009: TooLarge, 1011: ServerFailure}


class AsyncConversation:
    """One session's websocket. `session` is the session as it was when the socket was opened last.

    A socket that is lost, in a turn or between two, is opened again by the turn that needs it.
    """

    session: Session

    def __init__(self, wire: Wire, session_id: str) -> None:
        self._wire = wire
        self._path = path_of("sessions", session_id, "stream")
        self._socket: ClientConnection | None = None
        self._turn: RunningTurn | None = None

    async def connect(self) -> None:
        """Open the socket.

        Raises:
            HopeRequestError: the session is unknown, the key is wrong, or nobody answers.
        """
        patience = self._wire.patience(self._wire.timeout_s, once=True)
        while self._socket is None:
            try:
                await self._open()
            except HopeRequestError as error:
                await patience.wait(error)

    async def close(self) -> None:
        """Close the socket; a turn that runs is cancelled by that."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    def turn(
        self, message: str, *, idempotency_key: str | None = None, **options: Unpack[TurnOptions]
    ) -> AsyncIterator[TurnEvent]:
        """Say something and iterate over the events as they come, `turn.completed` or `turn.cancelled` last.

        The turn is asked for by the first step of the iteration.

        Args:
            message: what to say.
            idempotency_key: the same key with the same turn returns the stored turn and learns nothing again. Made
                where it is left out; give one to be able to ask again after this program itself was restarted.
            options: how the turn is to be taken.
        """
        if self._turn is not None and not self._turn.ended:
            raise RuntimeError("a turn is still running here: iterate over rest() to its end, cancel() it, or both")
        asked = {"message": message, **options}
        frame = {"type": "turn.create", "turn": asked, "idempotency_key": idempotency_key or new_key()}

        limit_s = options.get("timeout_s", DEFAULT_TIMEOUT_S) + self._wire.timeout_s
        patience = self._wire.patience(limit_s, once=True)
        self._turn = RunningTurn(partial(self._ask, frame), self._receive, patience)
        return self.rest()

    async def rest(self) -> AsyncIterator[TurnEvent]:
        """The events of the running turn that have not been yielded yet; none when no turn runs."""
        while self._turn is not None and not self._turn.ended:
            yield await self._turn.next()

    async def cancel(self) -> None:
        """Stop the running turn; it then ends with `turn.cancelled` or, too late, `turn.completed`."""
        if self._turn is None or self._turn.ended or self._turn.cancel_asked:
            return
        self._turn.cancel_asked = True
        if self._turn.begun:
            with suppress(ConnectionLost):  # whoever iterates over the turn is told
                await self._send(CANCEL)

    async def _ask(self, frame: dict[str, Any], again: bool) -> None:
        """Begin a turn. Where that fails, the socket goes: nobody could say what became of the frame."""
        try:
            if again:
                self._drop()  # what it still carries belongs to the attempt that failed
            if self._socket is None or self._socket.close_code is not None:
                await self._open()
            await self._send(frame)
            if self._turn is not None and self._turn.cancel_asked:  # while the socket was being opened
                await self._send(CANCEL)
        except BaseException:
            self._drop()
            raise

    async def _open(self) -> None:
        wire = self._wire
        try:
            self._socket = await connect(
                f"ws{wire.url.removeprefix('http')}{self._path}",
                additional_headers=wire.headers,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
                compression=None,
                open_timeout=wire.timeout_s,
                max_size=None,
                max_queue=None,  # a caller that reads slowly is no slow reader to the server
            )
        except InvalidStatus as refused:
            status = refused.response.status_code
            if status in BAD_GATEWAYS:
                raise wire.lost(f"a proxy got no answer (status {status})") from refused
            message = f"What answers at {wire.url} is no Hope server (status {status})."
            raise Unreachable(message, status=status, repeatable=False) from refused
        except (OSError, InvalidHandshake) as error:
            raise wire.nobody(error) from error
        except InvalidURI as error:
            raise Unreachable(f"{wire.url} is no address of a server: {error}", repeatable=False) from error
        try:
            greeting = await self._receive()
            if greeting["type"] == "error":
                raise from_event(greeting["error"])
        except BaseException:
            self._drop()
            raise
        wire.met = True
        self.session = greeting["session"]

    async def _send(self, frame: dict[str, Any]) -> None:
        assert self._socket is not None
        try:
            await self._socket.send(json.dumps(frame, ensure_ascii=False))
        except ConnectionClosed as closed:
            raise self._closed(closed) from closed

    async def _receive(self) -> dict[str, Any]:
        if self._socket is None:
            raise self._wire.lost("it was closed here")
        try:
            event: dict[str, Any] = json.loads(await self._socket.recv())
            return event
        except ConnectionClosed as closed:
            self._socket = None
            raise self._closed(closed) from closed

    def _drop(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.transport.abort()

    def _closed(self, closed: ConnectionClosed) -> HopeRequestError:
        received = closed.rcvd
        if received is None:
            return self._wire.lost("it broke off")
        if received.code in _FINAL_CLOSES:
            message = f"The server closed the connection ({received.code} {received.reason})."
            return _FINAL_CLOSES[received.code](message)
        if received.code == 1012:
            return self._wire.lost("the server is restarting")
        return self._wire.lost(f"the server closed it ({received.code} {received.reason})")

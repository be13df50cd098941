"""A turn as a client lives through it: asked with one key, and asked again when the connection is lost.

The server keeps a turn under its key, so asking again either fetches what was learned or learns it for the first time.
Knows no transport: websocket and Server-Sent Events differ in how they begin and receive.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, cast

from hope_client.contract import TurnEvent
from hope_client.errors import HopeRequestError, Interrupted, from_event
from hope_client.retry import Patience

DEFAULT_TIMEOUT_S = 60.0
LAST_EVENTS = ("turn.completed", "turn.cancelled")


def new_key() -> str:
    """An idempotency key nobody else has."""
    return f"hope-client-{uuid.uuid4().hex}"


class RunningTurn:
    """One turn until its last event.

    Args:
        begin: ask for the turn, over a new connection if need be; told whether it is asked again. Leaves nothing
            half asked when cancelled.
        receive: the next event of what was asked last; cancelled, it loses none.
        patience: how often to begin again.
    """

    def __init__(
        self,
        begin: Callable[[bool], Awaitable[None]],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        patience: Patience,
    ) -> None:
        self._begin, self._receive, self._patience = begin, receive, patience
        self.begun = False
        self.ended = False
        self.cancel_asked = False
        self._failure: HopeRequestError | None = None
        self._told = False

    async def next(self) -> TurnEvent:
        """The next event.

        Raises:
            HopeRequestError: the turn ended with it.
        """
        while True:
            if self.cancel_asked and not self.begun:
                return self._cancelled_before_it_began()
            try:
                event = await self._step()
            except HopeRequestError as error:
                await self._endure(error)
            else:
                self._told = event["type"] != "turn.restarted"
                self.ended = event["type"] in LAST_EVENTS
                return event

    async def _step(self) -> TurnEvent:
        if not self.begun:
            await self._begin(self._failure is not None)
            self.begun = True
            if self._told:
                return {"type": "turn.restarted", "reason": str(self._failure)}
        event = await self._receive()
        if event["type"] == "error":
            raise from_event(event["error"])
        if event["type"] == "turn.cancelled" and not self.cancel_asked:
            raise Interrupted("The server stopped in the middle of the turn; nothing was learned.")
        return cast(TurnEvent, event)

    async def _endure(self, error: HopeRequestError) -> None:
        """Wait for the next attempt. A cancelled turn gets none: what became of it is not known."""
        self.begun, self._failure = False, error
        try:
            if self.cancel_asked:
                raise error
            await self._patience.wait(error)
        except HopeRequestError:
            self.ended = True
            raise

    def _cancelled_before_it_began(self) -> TurnEvent:
        self.ended = True
        if self._failure is not None:
            raise self._failure
        return {"type": "turn.cancelled", "turn_id": None}

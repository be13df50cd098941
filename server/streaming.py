"""One turn over HTTP, whole or as Server-Sent Events: hanging up cancels it, and a slow reader is cut off.

Knows no route and no wording of events: who opens a stream says how each event looks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.responses import Response

from engine import HopeError, Turn, TurnCompleted, TurnEvent
from server.delivery import Outbox, SlowReader
from server.errors import error_body, unexpected
from server.service import Service

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

# The events of one turn, to be closed by whoever reads them.
Events = aclosing[AsyncGenerator[TurnEvent, None]]
# What is sent of one event: none, one or several objects.
Framing = Callable[[TurnEvent], Iterable[dict[str, Any]]]

# Nobody reads this status: the caller has gone. Only the request count shows it.
CLIENT_CLOSED_REQUEST = 499

Result = TypeVar("Result")


class TurnStream(Response):
    """One turn as Server-Sent Events.

    An error before the first event becomes an ordinary error response; after it, what `failing` makes of the error
    object. A reader that stops reading is cut off, and its turn cancelled.

    Args:
        events: the turn.
        framing: what is sent of an event.
        failing: what is sent of an error.
        headers: to send beside the usual ones.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        service: Service,
        events: Events,
        framing: Framing,
        failing: Callable[[dict[str, Any]], dict[str, Any]],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._service, self._events = service, events
        self._framing, self._failing = framing, failing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.lifecycle.turn():
            if await unless_hung_up(receive, self._run(send)) is None:
                self._service.metrics.disconnects.inc()

    async def _run(self, send: Send) -> bool:
        server = self._service.settings.server
        async with self._events as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with Outbox(
                partial(_send_text, send),
                max_events=server.outbox_events,
                send_timeout_s=server.send_timeout_s,
                keep_alive=": keep-alive\n\n",
            ) as outbox:
                try:
                    await self._deliver(first, events, outbox)
                except SlowReader:
                    self._service.metrics.slow_drops.inc()
                    return True
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True

    async def _deliver(self, first: TurnEvent, events: AsyncGenerator[TurnEvent, None], outbox: Outbox) -> None:
        """Everything after the headers: the events, what went wrong if something did, and the end mark."""
        self._put(first, outbox)
        try:
            async for event in events:
                self._put(event, outbox)
        except SlowReader:
            raise
        except HopeError as error:
            outbox.put(_data(self._failing(error_body(error))))
        except Exception as error:  # the status has been sent: whatever it was, the stream must say that it failed
            outbox.put(_data(self._failing(error_body(unexpected(error)))))
        outbox.put("data: [DONE]\n\n")
        await outbox.flush()

    def _put(self, event: TurnEvent, outbox: Outbox) -> None:
        for said in self._framing(event):
            outbox.put(_data(said))


async def whole_turn(service: Service, receive: Receive, events: Events) -> Turn | None:
    """The turn at its end; None where the caller hung up before, which cancelled it."""
    with service.lifecycle.turn():
        turn = await unless_hung_up(receive, _last(events))
    if turn is None:
        service.metrics.disconnects.inc()
    return turn


async def _last(events: Events) -> Turn | None:
    turn: Turn | None = None
    async with events as found:
        async for event in found:
            if isinstance(event, TurnCompleted):
                turn = event.turn
    return turn


def _data(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


async def _send_text(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Run `work`, but cancel it as soon as the caller hangs up; then the result is None.

    A plain handler is never told that its caller has left, so the two are raced.
    """
    working = asyncio.create_task(work)
    hanging_up = asyncio.create_task(_hang_up(receive))
    try:
        await asyncio.wait({working, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, hanging_up):
            task.cancel()
        await asyncio.wait({working, hanging_up})


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue

"""One turn over HTTP, whole or as Server-Sent Events: hanging up cancels it, and a slow reader is cut off.

Knows no route and no words: who opens a stream says how each event looks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.responses import Response

from engine import HopeError, SaidToken, Turn, TurnCompleted, TurnEvent, TurnToken
from server.delivery import Outbox, SlowReader
from server.errors import unexpected
from server.service import Service
from server.wording import Wording

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

# The events of one turn, to be closed by whoever reads them.
Events = aclosing[AsyncGenerator[TurnEvent, None]]

# Nobody reads this status: the caller has gone. Only the request count shows it.
CLIENT_CLOSED_REQUEST = 499

Result = TypeVar("Result")


class TurnStream(Response):
    """One turn as Server-Sent Events.

    An error before the first event becomes an ordinary error response; after it, what `wording` makes of it. A reader
    that stops reading is cut off, and its turn cancelled.

    Args:
        events: the turn.
        wording: what is sent of it.
        headers: to send beside the usual ones.
        named: every event is sent with its type as its name, and the last one is the end; otherwise `[DONE]` is.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        service: Service,
        events: Events,
        wording: Wording,
        headers: dict[str, str] | None = None,
        *,
        named: bool = False,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._service, self._events = service, events
        self._wording, self._named = wording, named

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
        self._put(self._wording.event(first), outbox)
        try:
            async for event in events:
                self._put(self._wording.event(event), outbox)
        except SlowReader:
            raise
        except HopeError as error:
            self._put(self._wording.failure(error), outbox)
        except Exception as error:  # the status has been sent: whatever it was, the stream must say that it failed
            self._put(self._wording.failure(unexpected(error)), outbox)
        if not self._named:
            outbox.put("data: [DONE]\n\n")
        await outbox.flush()

    def _put(self, said: Iterable[dict[str, Any]], outbox: Outbox) -> None:
        for one in said:
            outbox.put((f"event: {one['type']}\n" if self._named else "") + _data(one))


@dataclass(frozen=True)
class WholeTurn:
    """A turn at its end, with the tokens of its reply; None where it was stored earlier, or nobody asked for them."""

    turn: Turn
    logprobs: tuple[SaidToken, ...] | None


async def whole_turn(service: Service, receive: Receive, events: Events, *, logprobs: bool = False) -> WholeTurn | None:
    """The turn at its end; None where the caller hung up before, which cancelled it."""
    with service.lifecycle.turn():
        whole = await unless_hung_up(receive, _last(events, logprobs))
    if whole is None:
        service.metrics.disconnects.inc()
    return whole


async def _last(events: Events, logprobs: bool) -> WholeTurn | None:
    whole: WholeTurn | None = None
    tokens: list[SaidToken] = []
    async with events as found:
        async for event in found:
            if isinstance(event, TurnToken):
                tokens += event.logprobs
            elif isinstance(event, TurnCompleted):
                whole = WholeTurn(event.turn, tuple(tokens) if logprobs and not event.replayed else None)
    return whole


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

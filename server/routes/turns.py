"""A turn over HTTP: as one JSON answer, or as Server-Sent Events of the same events a websocket carries.

In both, hanging up cancels the turn. How a turn runs the engine knows; here it is only framed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine import HopeError, Turn, TurnCompleted, TurnEvent, TurnRequest
from server.auth import Caller
from server.delivery import Outbox, SlowReader, turn_events
from server.errors import error_body, unexpected
from server.schemas import IdempotencyKey, SessionId, TurnCreate, turn_event
from server.service import Service, Serving

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

router = APIRouter(prefix="/v1/sessions", tags=["turns"])

# Nobody reads this status: the caller has gone. Only the request count shows it.
CLIENT_CLOSED_REQUEST = 499

Result = TypeVar("Result")


@router.post(
    "/{session_id}/turns",
    response_model=Turn,
    responses={200: {"content": {"text/event-stream": {}}, "description": "The turn; with `stream`, its events."}},
)
async def create_turn(
    session_id: SessionId,
    body: TurnCreate,
    request: Request,
    caller: Caller,
    service: Serving,
    idempotency_key: IdempotencyKey = None,
) -> Turn | Response:
    """Say something. When the reply arrives, memory, transcript and idempotency key are durable."""
    turn_request = body.to_request(service.settings.engine.max_new_tokens, idempotency_key)
    if body.stream:
        return TurnStream(service, caller.tenant, session_id, turn_request)
    with service.lifecycle.turn():
        turn = await unless_hung_up(request.receive, _whole_turn(service, caller.tenant, session_id, turn_request))
    if turn is None:
        service.metrics.disconnects.inc()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return turn


class TurnStream(Response):
    """One turn as Server-Sent Events.

    An error before the first event becomes an ordinary error response; after it, an `error` event. A reader
    that stops reading is cut off, and its turn cancelled.
    """

    media_type = "text/event-stream"

    def __init__(self, service: Service, tenant: str, session_id: str, request: TurnRequest) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service = service
        self._turn = (tenant, session_id, request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.lifecycle.turn():
            if await unless_hung_up(receive, self._run(send)) is None:
                self._service.metrics.disconnects.inc()

    async def _run(self, send: Send) -> bool:
        server = self._service.settings.server
        async with turn_events(self._service.engine, *self._turn) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with Outbox(
                partial(_send_text, send),
                max_events=server.outbox_events,
                send_timeout_s=server.send_timeout_s,
                keep_alive=": keep-alive\n\n",
            ) as outbox:
                try:
                    await _deliver(first, events, outbox)
                except SlowReader:
                    self._service.metrics.slow_drops.inc()
                    return True
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


async def _deliver(first: TurnEvent, events: AsyncGenerator[TurnEvent, None], outbox: Outbox) -> None:
    """Everything after the headers: the events, what went wrong if something did, and the end mark."""
    outbox.put(_data(turn_event(first)))
    try:
        async for event in events:
            outbox.put(_data(turn_event(event)))
    except SlowReader:
        raise
    except HopeError as error:
        outbox.put(_data({"type": "error", **error_body(error)}))
    except Exception as error:  # the status has been sent: whatever it was, the stream must say that it failed
        outbox.put(_data({"type": "error", **error_body(unexpected(error))}))
    outbox.put("data: [DONE]\n\n")
    await outbox.flush()


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


async def _whole_turn(service: Service, tenant: str, session_id: str, request: TurnRequest) -> Turn | None:
    turn: Turn | None = None
    async with turn_events(service.engine, tenant, session_id, request) as events:
        async for event in events:
            if isinstance(event, TurnCompleted):
                turn = event.turn
    return turn

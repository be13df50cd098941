"""A turn over HTTP: as one JSON answer, or as Server-Sent Events of the same events a websocket carries.

In both, hanging up cancels the turn. How a turn runs the engine knows; here it is only framed.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine import Turn
from server.auth import Caller
from server.delivery import turn_events
from server.reference import TURN_FAILURES
from server.schemas import IdempotencyKey, SessionId, TurnCreate
from server.service import Serving
from server.streaming import CLIENT_CLOSED_REQUEST, TurnStream, whole_turn
from server.wording import TurnWording

router = APIRouter(prefix="/v1/sessions", tags=["turns"])


@router.post(
    "/{session_id}/turns",
    response_model=Turn,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The turn; with `stream`, its events."},
        **TURN_FAILURES,
    },
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
    events = turn_events(service.engine.turn(caller.tenant, session_id, turn_request))
    if body.stream:
        return TurnStream(service, events, TurnWording())
    whole = await whole_turn(service, request.receive, events)
    return Response(status_code=CLIENT_CLOSED_REQUEST) if whole is None else whole.turn

"""OpenAI's responses: made over HTTP or on a websocket, looked at, and taken back. Translates, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.websockets import WebSocket

from engine import Conflict, Draining, HopeError, InvalidRequest, NotFound, Unsupported
from server.auth import SUBPROTOCOL, Caller
from server.delivery import turn_events
from server.errors import answer_for, error_body, from_validation
from server.offered import SESSION_HEADER, SESSION_PARAMETER
from server.reference import TURN_FAILURES, failures
from server.responding import respond
from server.response_events import ResponseDeleted, ResponseEvents, ResponseObject, ended, stored
from server.responses import ResponseCreate, ResponseCreateFrame, no_response, turn_of
from server.routes.chat import check_model
from server.schemas import IdempotencyKey
from server.service import Service, Serving
from server.sockets import TurnSocket
from server.streaming import CLIENT_CLOSED_REQUEST, TurnStream, whole_turn

router = APIRouter(prefix="/v1/responses", tags=["openai"])


@router.post(
    "",
    response_model=ResponseObject,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The response; with `stream`, its events."},
        **TURN_FAILURES,
    },
    openapi_extra=SESSION_PARAMETER,
)
async def create_response(
    body: ResponseCreate, request: Request, caller: Caller, service: Serving, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answer. It follows `previous_response_id`, or goes on in `conversation`, or begins a session of its own."""
    check_model(service, body.model)
    made = respond(service, caller.tenant, request.headers, body, idempotency_key)
    events = turn_events(made.events)
    headers = {SESSION_HEADER: made.session_id} if made.session_id else {}
    if body.stream:
        return TurnStream(service, events, ResponseEvents(made.asked), headers, named=True)
    whole = await whole_turn(service, request.receive, events, logprobs=made.logprobs)
    if whole is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(ended(made.asked, whole.turn, whole.logprobs), headers=headers)


@router.get("/{response_id}", response_model=ResponseObject, responses=failures(NotFound))
async def read_response(
    response_id: str,
    caller: Caller,
    service: Serving,
    stream: Annotated[bool, Query(description="not offered", json_schema_extra={"const": False})] = False,
) -> Response:
    """A response that was kept, as long as its turn is in its session's transcript."""
    if stream:
        raise Unsupported("'stream': a response that has ended is not streamed again; leave it out.", param="stream")
    session_id, turn_id = turn_of(response_id, "response_id")
    try:
        turn, last = await service.engine.read_turn(caller.tenant, session_id, turn_id)
    except NotFound as error:
        raise no_response("response_id") from error
    return JSONResponse(stored(turn, last, service.engine.model_name), headers={SESSION_HEADER: session_id})


@router.delete("/{response_id}", responses=failures(NotFound, Conflict))
async def delete_response(response_id: str, caller: Caller, service: Serving) -> ResponseDeleted:
    """Take a session's last response back: what was learned with it is unlearned. Another one is 409."""
    session_id, turn_id = turn_of(response_id, "response_id")
    try:
        await service.engine.undo_turn(caller.tenant, session_id, turn_id)
    except NotFound as error:
        raise no_response("response_id") from error
    except Conflict as error:
        error.param = "response_id"
        raise
    return ResponseDeleted(response_id)


async def _not_stopping(service: Serving) -> None:
    if service.lifecycle.draining:
        raise Draining("The server is stopping; connect again in a moment.")


@router.websocket("")
async def connect(
    socket: WebSocket, caller: Caller, service: Serving, _: Annotated[None, Depends(_not_stopping)]
) -> None:
    """Responses until either side leaves, one at a time."""
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
    await ResponseSocket(socket, caller.tenant, service).serve()


class ResponseSocket(TurnSocket):
    """One accepted websocket on which a client asks for responses."""

    busy = "A response is still running on this socket; wait for its end."

    def __init__(self, socket: WebSocket, tenant: str, service: Service) -> None:
        super().__init__(socket, service)
        self._headers, self._tenant, self._service = socket.headers, tenant, service

    def greet(self) -> None:
        """See `TurnSocket`: the client's protocol has no greeting."""

    def obey(self, frame: Any) -> None:
        """See `TurnSocket`."""
        if not isinstance(frame, dict) or frame.get("type") != "response.create":
            raise InvalidRequest("'type': send frames of type 'response.create'; others are not offered.", param="type")
        try:
            body = ResponseCreateFrame.model_validate(frame)
        except ValidationError as error:
            raise from_validation(error.errors()) from None
        self.check_free()
        check_model(self._service, body.model)
        made = respond(self._service, self._tenant, self._headers, body)
        self.start(made.events, ResponseEvents(made.asked, socket=True, mark=_mark(frame)))

    def refuse(self, error: HopeError, frame: Any) -> None:
        """See `TurnSocket`."""
        self.send({"type": "error", "status": answer_for(error).status, **error_body(error), **_mark(frame)})


def _mark(frame: Any) -> dict[str, str]:
    """What every event of a frame's answer carries: the name that the client gave its lane, if it did."""
    lane = frame.get("stream_id") if isinstance(frame, dict) else None
    return {"stream_id": lane} if isinstance(lane, str) else {}

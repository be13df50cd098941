"""OpenAI's chat completions: a client that sends the whole conversation each time, and a session that knows it.

Only what is new is read; how that is found the engine knows. Translates, and nothing else.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine import NotFound
from server.auth import Caller
from server.completion_events import ChatCompletion, Chunks, completion
from server.completions import ChatCreate, ModelList, ModelObject
from server.delivery import turn_events
from server.offered import READ_ONLY, SESSION_HEADER, SESSION_PARAMETER, may_learn, session_named
from server.reference import TURN_FAILURES, failures
from server.schemas import IdempotencyKey
from server.service import Service, Serving
from server.streaming import CLIENT_CLOSED_REQUEST, TurnStream, whole_turn

router = APIRouter(prefix="/v1", tags=["openai"])

_STARTED = int(time.time())


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    response_model_exclude_none=True,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The completion; with `stream`, its chunks."},
        **TURN_FAILURES,
    },
    openapi_extra=SESSION_PARAMETER,
)
async def create_chat_completion(
    body: ChatCreate, request: Request, caller: Caller, service: Serving, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answer a conversation. With a session only what is new of it is read and learned; without, nothing is kept."""
    check_model(service, body.model)
    messages, session_id = body.conversation(), session_named(request.headers, body.names())
    learn = may_learn(request.headers, body.model)
    asked = body.to_request(service.settings.engine.max_new_tokens, learn=learn, idempotency_key=idempotency_key)
    events = turn_events(service.engine.chat(caller.tenant, session_id, messages, asked))
    headers = {SESSION_HEADER: session_id} if session_id else {}
    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        return TurnStream(service, events, Chunks(body.model, include_usage=include_usage), headers)
    whole = await whole_turn(service, request.receive, events, logprobs=asked.top_logprobs is not None)
    if whole is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(completion(whole, body.model), headers=headers)


@router.get("/models")
async def list_models(caller: Caller, service: Serving) -> ModelList:
    """The model, and the same without learning: for the hidden prompts of chat front ends."""
    return ModelList([ModelObject(name, _STARTED) for name in _names(service)])


@router.get("/models/{model}", responses=failures(NotFound))
async def read_model(model: str, caller: Caller, service: Serving) -> ModelObject:
    """One model."""
    check_model(service, model)
    return ModelObject(model, _STARTED)


def check_model(service: Service, model: str) -> None:
    """Raises NotFound where there is no such model."""
    if model not in _names(service):
        raise NotFound(f"There is no such model; there are {' and '.join(_names(service))}.", param="model")


def _names(service: Service) -> tuple[str, str]:
    name = service.engine.model_name
    return name, name + READ_ONLY

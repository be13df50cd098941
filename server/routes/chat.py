"""OpenAI's chat completions: a client that sends the whole conversation each time, and a session that knows it.

Only what is new is read; how that is found the engine knows. Translates, and nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers

from engine import InvalidRequest, NotFound
from server.auth import Caller
from server.completions import READ_ONLY, ChatCompletion, ChatCreate, Chunks, ModelList, ModelObject, completion
from server.delivery import turn_events
from server.schemas import SESSION_ID, IdempotencyKey
from server.service import Service, Serving
from server.streaming import CLIENT_CLOSED_REQUEST, TurnStream, whole_turn

router = APIRouter(prefix="/v1", tags=["openai"])

SESSION_HEADER = "X-Session-ID"
# Chat front ends name their conversations in headers of their own; a hidden prompt for a title names its task.
ALIASES = ("X-OpenWebUI-Chat-Id", "X-Conversation-Id", "X-Chat-Id")
TASK_HEADER = "X-OpenWebUI-Task"

_STARTED = int(time.time())
_SESSION_ID = re.compile(SESSION_ID)


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    response_model_exclude_none=True,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The completion; with `stream`, its chunks."}
    },
)
async def create_chat_completion(
    body: ChatCreate, request: Request, caller: Caller, service: Serving, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answer a conversation. With a session only what is new of it is read and learned; without, nothing is kept."""
    _known(service, body.model)
    messages, session_id = body.conversation(), _session_id(request.headers, body)
    learn = not body.model.endswith(READ_ONLY) and not request.headers.get(TASK_HEADER)
    asked = body.to_request(service.settings.engine.max_new_tokens, learn=learn, idempotency_key=idempotency_key)
    events = turn_events(service.engine.chat(caller.tenant, session_id, messages, asked))
    headers = {SESSION_HEADER: session_id} if session_id else {}
    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        framing = Chunks(body.model, include_usage=include_usage)
        return TurnStream(service, events, framing, lambda error: error, headers)
    turn = await whole_turn(service, request.receive, events)
    if turn is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(completion(turn, body.model), headers=headers)


@router.get("/models")
async def list_models(caller: Caller, service: Serving) -> ModelList:
    """The model, and the same without learning: for the hidden prompts of chat front ends."""
    return ModelList([ModelObject(name, _STARTED) for name in _names(service)])


@router.get("/models/{model}")
async def read_model(model: str, caller: Caller, service: Serving) -> ModelObject:
    """One model."""
    _known(service, model)
    return ModelObject(model, _STARTED)


def _names(service: Service) -> tuple[str, str]:
    name = service.engine.model_name
    return name, name + READ_ONLY


def _known(service: Service, model: str) -> None:
    if model not in _names(service):
        raise NotFound(f"There is no such model; there are {' and '.join(_names(service))}.", param="model")


def _session_id(headers: Headers, body: ChatCreate) -> str | None:
    """The session's id from the first place that names one; never the field `user`."""
    for place, value in _named(headers, body):
        if value is None or value == "":
            continue
        if not isinstance(value, str) or not _SESSION_ID.fullmatch(value):
            raise InvalidRequest(f"'{place}': a session's id is 1 to 64 letters, digits, '_' and '-'.", param=place)
        return value
    return None


def _named(headers: Headers, body: ChatCreate) -> Iterator[tuple[str, Any]]:
    yield SESSION_HEADER, headers.get(SESSION_HEADER)
    yield "session_id", body.session_id
    yield "metadata.session_id", (body.metadata or {}).get("session_id")
    for name in ALIASES:
        yield name, headers.get(name)

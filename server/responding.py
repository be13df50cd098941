"""A response asked for, over HTTP or a websocket alike, as a turn of the engine: in which session, and after what.

Knows no framing: who asked sends the events on.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.datastructures import Headers

from engine import HopeError, InvalidRequest, NotFound, TurnEvent
from server.offered import may_learn, session_named
from server.response_events import Asked
from server.responses import ResponseCreate, no_response, turn_of
from server.service import Service


@dataclass(frozen=True)
class Responding:
    """A turn that is about to begin.

    Attributes:
        events: of the turn; reading them runs it.
        asked: what its response repeats.
        session_id: the session it stands in; None for none.
        logprobs: whether they are to be told.
    """

    events: AsyncGenerator[TurnEvent, None]
    asked: Asked
    session_id: str | None
    logprobs: bool


def respond(
    service: Service, tenant: str, headers: Headers, body: ResponseCreate, idempotency_key: str | None = None
) -> Responding:
    """The turn that answers a request.

    With `previous_response_id` it stands in that response's session and follows it; else in the session that is named.
    With neither a new session begins, so that the response can be followed; where nothing may be kept, none.

    Raises:
        HopeError: what is asked for is wrong or not offered; nothing has begun.
    """
    messages, named = body.messages(), session_named(headers, body.names())
    learn = may_learn(headers, body.model)
    request = body.to_request(service.settings.engine.max_new_tokens, learn=learn, idempotency_key=idempotency_key)
    session_id, follows = named, None
    if body.previous_response_id is not None:
        session_id, follows = turn_of(body.previous_response_id, "previous_response_id")
        if body.conversation is not None:
            raise InvalidRequest(
                "'conversation': give it or 'previous_response_id', not both; the response knows its session.",
                param="conversation",
            )
        if named not in (None, session_id):
            raise InvalidRequest(
                "'previous_response_id': it is of another session than the one that is named.",
                param="previous_response_id",
            )
    elif named is None and request.learn:
        session_id = _new_session_id(idempotency_key)
    asked = Asked(
        body.model,
        int(time.time()),
        session_id if request.learn else None,
        {
            "conversation": {"id": session_id} if session_id else None,
            "previous_response_id": body.previous_response_id,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "store": request.learn,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_logprobs": request.top_logprobs or 0,
        },
    )
    turn = service.engine.chat(tenant, session_id, messages, request, follows)
    return Responding(_in_words_of_responses(turn), asked, session_id, request.top_logprobs is not None)


async def _in_words_of_responses(turn: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[TurnEvent, None]:
    """The same events; errors name the fields of a response's request."""
    try:
        async with aclosing(turn) as events:
            async for event in events:
                yield event
    except NotFound as error:
        raise no_response("previous_response_id") from error
    except HopeError as error:
        if error.param in ("message", "messages"):
            error.param = "input"
        raise


def _new_session_id(idempotency_key: str | None) -> str:
    """A new session's; the same for a repeat with its key, which so finds the turn that was stored."""
    if idempotency_key is None:
        return f"s-{secrets.token_hex(8)}"
    return f"s-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:16]}"

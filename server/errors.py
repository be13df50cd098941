"""How every failure looks on the wire: one table from error class to status, type and close code.

The same object answers HTTP, ends a stream and closes a websocket. Nothing here raises, and no
message carries a stack trace, a path or a key.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from engine import (
    Conflict,
    DeadlineExceeded,
    Draining,
    Forbidden,
    HopeError,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    StoreUnavailable,
    TooLarge,
    TurnCancelled,
    Unauthorized,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from starlette.requests import HTTPConnection, Request

logger = logging.getLogger("hope.server")

CLOSE_INTERNAL = 1011
CLOSE_NOT_ALLOWED = 1008
CLOSE_TOO_LARGE = 1009
CLOSE_RESTARTING = 1012
CLOSE_OVERLOADED = 1013

DEFAULT_RETRY_AFTER_S = 1.0

# Fields of chat APIs that a client may send out of habit: known, and not offered.
NOT_OFFERED = frozenset(
    "audio best_of echo frequency_penalty function_call functions logit_bias logprobs min_p modalities n "
    "parallel_tool_calls presence_penalty response_format suffix tool_choice tools top_k top_logprobs".split()
)


METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

# Where pydantic says a field was found: the part of the request, or the kind of websocket frame.
_LOCATION_PREFIXES = ("body", "query", "path", "header", "turn.create", "turn.cancel", "ping")
# And in what a field may be, one or the other: no part of its name.
_ALTERNATIVE = re.compile(r"(constrained-)?str|list\[.*\]")


class LoginRequired(Unauthorized):
    """A page opened in a browser without a key: the browser should ask for one."""


class MethodNotAllowed(InvalidRequest):
    """The route exists, but not for this method."""


@dataclass(frozen=True)
class Answer:
    """How one class of error is answered.

    Attributes:
        status: of the HTTP response.
        kind: the `type` of the error object, in OpenAI's words.
        close_code: of a websocket that cannot go on.
        repeatable: True sends Retry-After; False sends `x-should-retry: false`, for the stock clients repeat
            409 and every 5xx by themselves and a repeat would be pointless or a second learning step; None
            sends neither, for no client repeats that status.
    """

    status: int
    kind: str
    close_code: int
    repeatable: bool | None = None


ANSWERS: dict[type[HopeError], Answer] = {
    InvalidRequest: Answer(400, "invalid_request_error", CLOSE_NOT_ALLOWED),
    MethodNotAllowed: Answer(405, "invalid_request_error", CLOSE_NOT_ALLOWED),
    Unauthorized: Answer(401, "authentication_error", CLOSE_NOT_ALLOWED),
    Forbidden: Answer(403, "permission_error", CLOSE_NOT_ALLOWED),
    NotFound: Answer(404, "not_found_error", CLOSE_NOT_ALLOWED),
    Conflict: Answer(409, "conflict_error", CLOSE_NOT_ALLOWED, repeatable=False),
    TooLarge: Answer(413, "invalid_request_error", CLOSE_TOO_LARGE),
    RateLimited: Answer(429, "rate_limit_error", CLOSE_OVERLOADED, repeatable=True),
    Unavailable: Answer(503, "server_error", CLOSE_OVERLOADED, repeatable=True),
    Overloaded: Answer(503, "server_error", CLOSE_OVERLOADED, repeatable=True),
    StoreUnavailable: Answer(503, "server_error", CLOSE_OVERLOADED, repeatable=True),
    Draining: Answer(503, "server_error", CLOSE_RESTARTING, repeatable=True),
    TurnCancelled: Answer(503, "server_error", CLOSE_RESTARTING, repeatable=True),
    DeadlineExceeded: Answer(504, "timeout_error", CLOSE_OVERLOADED, repeatable=False),
    Internal: Answer(500, "server_error", CLOSE_INTERNAL, repeatable=False),
    HopeError: Answer(500, "server_error", CLOSE_INTERNAL, repeatable=False),
}


def answer_for(error: HopeError) -> Answer:
    """The row of the table for an error: its own class's, else its nearest ancestor's."""
    return next(ANSWERS[ancestor] for ancestor in type(error).__mro__ if ancestor in ANSWERS)


def error_body(error: HopeError) -> dict[str, Any]:
    """The error object of the contract."""
    return {
        "error": {
            "message": error.message,
            "type": answer_for(error).kind,
            "code": error.code,
            "param": error.param,
        }
    }


def error_response(error: HopeError) -> JSONResponse:
    """The HTTP answer: status, body and the headers that say whether to try again."""
    answer = answer_for(error)
    headers: dict[str, str] = {}
    if answer.repeatable:
        wait_s = error.retry_after_s if error.retry_after_s is not None else DEFAULT_RETRY_AFTER_S
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    elif answer.repeatable is False:
        headers["x-should-retry"] = "false"
    if isinstance(error, LoginRequired):
        headers["WWW-Authenticate"] = 'Basic realm="hope"'
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Draining | TooLarge):
        headers["Connection"] = "close"
    return JSONResponse(error_body(error), answer.status, headers)


def from_validation(problems: Sequence[Any]) -> InvalidRequest:
    """The first problem that pydantic found, as an error that names the field and never echoes the value."""
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    if location and location[0] in _LOCATION_PREFIXES:
        location = location[1:]
    location = [part for part in location if not _ALTERNATIVE.fullmatch(part)]
    kind = problem["type"]
    if kind == "json_invalid":
        return InvalidRequest("The body is not valid JSON.")
    field = ".".join(location) or None
    if kind == "extra_forbidden":
        if location[-1] in NOT_OFFERED:
            return Unsupported(f"'{location[-1]}' is not offered by this server; leave it out.", param=field)
        return InvalidRequest(f"Unknown field '{field}'; leave it out or correct its name.", param=field)
    if field is None:
        return InvalidRequest("The body must be a JSON object, sent with 'Content-Type: application/json'.")
    reason = str(problem["msg"]).removeprefix("Value error, ").rstrip(".")
    return InvalidRequest(f"'{field}': {reason[:1].lower()}{reason[1:]}.", param=field)


def unexpected(error: BaseException) -> Internal:
    """An error nobody foresaw: its trace goes to the log, and the caller only learns that it was ours."""
    logger.error("unexpected error", exc_info=error)
    return Internal("Something failed in the server; the outcome of the request is unknown.")


def install(app: FastAPI) -> None:
    """Make every failure of the app answer in the contract's form."""
    app.add_exception_handler(HopeError, _on_hope_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(WebSocketRequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)


async def refuse_socket(socket: WebSocket, error: HopeError) -> None:
    """Tell a websocket why it cannot go on and close it; accepted first, or it would never hear the code."""
    try:
        if socket.application_state is WebSocketState.CONNECTING:
            await socket.accept("hope.v1" if "hope.v1" in socket.scope.get("subprotocols", ()) else None)
        await socket.send_text(json.dumps({"type": "error", **error_body(error)}, ensure_ascii=False))
        await socket.close(answer_for(error).close_code, error.code)
    except (WebSocketDisconnect, RuntimeError):
        logger.debug("a refused websocket had already left")


async def _on_hope_error(connection: HTTPConnection, error: Exception) -> Any:
    assert isinstance(error, HopeError)
    connection.app.state.service.metrics.failed(error.code)
    if isinstance(connection, WebSocket):
        return await refuse_socket(connection, error)
    return error_response(error)


async def _on_validation(connection: HTTPConnection, error: Exception) -> Any:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    return await _on_hope_error(connection, from_validation(error.errors()))


async def _on_http_exception(connection: HTTPConnection, error: Exception) -> Any:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            answer: HopeError = NotFound("No such route; GET /docs lists them.")
        case 405:
            answer = MethodNotAllowed("This route does not offer that method; GET /docs lists what it does.")
        case status if status < 500:
            answer = InvalidRequest("The body is not valid JSON in UTF-8.")
        case _:
            answer = unexpected(error)
    response = await _on_hope_error(connection, answer)
    if isinstance(answer, MethodNotAllowed) and response is not None:
        response.headers["Allow"] = _allowed(connection)
    return response


def _allowed(connection: HTTPConnection) -> str:
    """The methods of every route on this path; Starlette names only those of the first."""

    def offers(method: str) -> bool:
        asked = {**connection.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in connection.app.routes)

    return ", ".join(filter(offers, METHODS))


async def _on_unexpected(request: Request, error: Exception) -> Any:
    # Starlette re-raises after this answer, and uvicorn logs the trace.
    return error_response(Internal("Something failed in the server; the outcome of the request is unknown."))

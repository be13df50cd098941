"""The OpenAPI document: what each route may answer when it fails, from the same table that answers.

FastAPI finds out everything else by itself. Knows no route.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from engine import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    HopeError,
    Internal,
    InvalidRequest,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from server.errors import ANSWERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

Responses = dict[int | str, dict[str, Any]]

_WHEN: dict[type[HopeError], str] = {
    InvalidRequest: "A field is malformed, out of range or unknown, or asks for what is not offered.",
    Unauthorized: "No key, or a wrong one.",
    Forbidden: "A key without that right.",
    NotFound: "There is no such thing here.",
    Conflict: "The id is taken, the key was used with another body, or the session is elsewhere by now.",
    TooLarge: "The body or the message is over the limit.",
    RateLimited: "Over the caller's limit; nothing was learned.",
    Unavailable: "The queue is full, the store does not answer, or the server is stopping; nothing was learned.",
    DeadlineExceeded: "The turn's deadline passed; nothing was learned.",
    Internal: "Something failed in the server.",
}
_RETRY_AFTER = {"description": "seconds to wait before asking again", "schema": {"type": "integer", "minimum": 1}}
_NO_RETRY = {"description": "the same again would fail again, or might be done twice", "schema": {"const": "false"}}
_BEARER = {"type": "http", "scheme": "bearer", "description": "a key of this server"}
# The fields that bound what is spoken in a turn.
_SPOKEN = (
    ("TurnCreate", "max_tokens"),
    ("ChatCreate", "max_tokens"),
    ("ChatCreate", "max_completion_tokens"),
    ("ResponseCreate", "max_output_tokens"),
)
# FastAPI's own words for a body that does not fit; here that is 400 and the error object.
_NOT_OURS = ("HTTPValidationError", "ValidationError")


@dataclass(frozen=True)
class ErrorDetail:
    """What was wrong, how to mend it, and the field at fault if one is."""

    message: str
    type: str
    code: str
    param: str | None


@dataclass(frozen=True)
class ErrorObject:
    """How every failure looks."""

    error: ErrorDetail


def failures(*kinds: type[HopeError]) -> Responses:
    """The `responses` of a route that may fail so; each kind has a row of its own in the table of answers."""
    return {ANSWERS[kind].status: _failure(kind) for kind in kinds}


def _failure(kind: type[HopeError]) -> dict[str, Any]:
    failure: dict[str, Any] = {"model": ErrorObject, "description": _WHEN[kind]}
    repeatable = ANSWERS[kind].repeatable
    if repeatable is not None:
        failure["headers"] = {"Retry-After": _RETRY_AFTER} if repeatable else {"x-should-retry": _NO_RETRY}
    return failure


# Whatever is asked, it may fail like this.
ANYWHERE = failures(InvalidRequest, Unauthorized, Forbidden, Internal, Unavailable)
TURN_FAILURES = failures(NotFound, Conflict, RateLimited, DeadlineExceeded)


def install(app: FastAPI, *, with_keys: bool, max_new_tokens: int) -> None:
    """Give the app its document, made when it is first asked for.

    Args:
        app: with all its routes.
        with_keys: whether this server asks for keys.
        max_new_tokens: the most that this server speaks in a turn.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, with_keys, max_new_tokens)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way FastAPI offers


def _document(app: FastAPI, with_keys: bool, max_new_tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    for path, operation in _operations(found):
        responses = operation["responses"]
        responses.pop("422", None)
        if "requestBody" in operation:
            responses["413"] = {**responses["400"], "description": _WHEN[TooLarge]}
        operation["responses"] = dict(sorted(responses.items()))
        if with_keys and (path.startswith("/v1") or path == "/metrics"):
            operation["security"] = [{"key": []}]
    schemas = found["components"]["schemas"]
    for name in _NOT_OURS:
        schemas.pop(name, None)
    for body, name in _SPOKEN:
        schema = schemas[body]["properties"][name]
        schema.get("anyOf", [schema])[0]["maximum"] = max_new_tokens
    if with_keys:
        found["components"]["securitySchemes"] = {"key": _BEARER}
    whole: dict[str, Any] = _whole_bounds(found)
    return whole


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _whole_bounds(node: Any) -> Any:
    """The same with whole numbers where FastAPI has made floats of them: 2**63 has no float beside it."""
    if isinstance(node, dict):
        return {name: _whole_bounds(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_whole_bounds(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node

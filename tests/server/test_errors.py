"""One table from error class to status and close code, and the error object in every answer."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING

import pytest

import engine
from engine import (
    CommitUnknown,
    Conflict,
    CorruptMemory,
    DeadlineExceeded,
    Draining,
    Forbidden,
    HopeError,
    Internal,
    InvalidRequest,
    LeaseLost,
    NotFound,
    OtherModel,
    Overloaded,
    RateLimited,
    StoreUnavailable,
    TooLarge,
    Unauthorized,
    Unsupported,
)
from server.errors import ANSWERS, answer_for, error_body, error_response

if TYPE_CHECKING:
    from tests.server.running import Running


@pytest.mark.parametrize(
    ("kind", "status", "code", "close_code"),
    [
        (InvalidRequest, 400, "invalid_request", 1008),
        (Unsupported, 400, "unsupported", 1008),
        (Unauthorized, 401, "unauthorized", 1008),
        (Forbidden, 403, "forbidden", 1008),
        (NotFound, 404, "not_found", 1008),
        (Conflict, 409, "conflict", 1008),
        (OtherModel, 409, "conflict", 1008),
        (TooLarge, 413, "too_large", 1009),
        (RateLimited, 429, "rate_limited", 1013),
        (Overloaded, 503, "overloaded", 1013),
        (StoreUnavailable, 503, "store_unavailable", 1013),
        (Draining, 503, "draining", 1012),
        (DeadlineExceeded, 504, "deadline_exceeded", 1013),
        (Internal, 500, "internal_error", 1011),
        (CorruptMemory, 500, "corrupt_memory", 1011),
        (LeaseLost, 500, "lease_lost", 1011),
        (CommitUnknown, 500, "commit_unknown", 1011),
    ],
)
def test_contracts_table(kind: type[HopeError], status: int, code: str, close_code: int) -> None:
    error = kind("why", param="field")
    assert (answer_for(error).status, answer_for(error).close_code) == (status, close_code)
    body = error_body(error)["error"]
    assert set(body) == {"message", "type", "code", "param"}
    assert (body["message"], body["code"], body["param"]) == ("why", code, "field")


def test_every_error_class_has_a_row_or_an_ancestor_with_one() -> None:
    kinds = [kind for _, kind in inspect.getmembers(engine, inspect.isclass) if issubclass(kind, HopeError)]
    assert len(kinds) > 15
    for kind in kinds:
        assert answer_for(kind("why")) is not ANSWERS[HopeError] or kind is HopeError, kind


@pytest.mark.parametrize("kind", [RateLimited, Overloaded, StoreUnavailable, Draining])
def test_refusal_that_is_safe_to_repeat_says_when(kind: type[HopeError]) -> None:
    assert error_response(kind("why")).headers["retry-after"] == "1"
    assert error_response(kind("why", retry_after_s=7.2)).headers["retry-after"] == "8"
    assert "x-should-retry" not in error_response(kind("why")).headers


@pytest.mark.parametrize("kind", [CommitUnknown, LeaseLost, Internal, DeadlineExceeded, Conflict])
def test_what_must_not_be_repeated_says_so(kind: type[HopeError]) -> None:
    assert error_response(kind("why")).headers["x-should-retry"] == "false"
    assert "retry-after" not in error_response(kind("why")).headers


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/v1/sessions", 405, "invalid_request"),
        ("GET", "/v1/sessions/two%20words", 400, "invalid_request"),
        ("GET", "/v1/sessions?limit=0", 400, "invalid_request"),
        ("GET", "/v1/sessions?limit=101", 400, "invalid_request"),
    ],
)
async def test_error_object_everywhere(live: Running, method: str, path: str, status: int, code: str) -> None:
    answer = await live.http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "code", "param"}


async def test_wrong_method_names_a_right_one(live: Running) -> None:
    assert (await live.http.put("/livez")).headers["allow"] == "GET"
    assert (await live.http.put("/v1/sessions")).headers["allow"] == "GET, POST"
    assert (await live.http.put("/v1/sessions/s")).headers["allow"] == "DELETE, GET, PATCH"


async def test_unforeseen_error_tells_nothing_and_must_not_be_repeated(
    live: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await live.new_session("s")

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("the secret of /etc/passwd")

    monkeypatch.setattr(live.engine.store, "get", broken)
    answer = await live.http.get("/v1/sessions/s")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-should-retry"] == "false"
    assert "passwd" not in answer.text
    assert "ZeroDivisionError" in caplog.text, "the operator must find the trace in the log"


async def test_unforeseen_error_in_a_turn_is_an_event_and_the_socket_lives(
    live: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await connection.recv()
        with monkeypatch.context() as broken:
            broken.setattr(live.engine.store, "acquire", None)
            await connection.send('{"type": "turn.create", "turn": {"message": "hello", "max_tokens": 1}}')
            error = json.loads(await connection.recv())["error"]
        assert error["code"] == "internal_error"
        assert "NoneType" not in error["message"]
        await connection.send('{"type": "ping"}')
        assert json.loads(await connection.recv()) == {"type": "pong"}

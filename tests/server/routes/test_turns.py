"""A turn over HTTP, as JSON and as Server-Sent Events: what a client may rely on, on a real socket."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from engine import Engine, EngineSettings, StoreSettings
from server.auth import parse_keys
from tests.server.running import running, slow_socket, until, with_server

if TYPE_CHECKING:
    from pathlib import Path

    from server.metrics import Metrics
    from tests.server.running import Running

TURNS = "/v1/sessions/s/turns"


async def test_json_turn_is_the_turn_of_the_contract(live: Running) -> None:
    await live.new_session("s")
    answer = await live.http.post(TURNS, json={"message": "hello", "max_tokens": 3, "temperature": 0})
    assert answer.status_code == 200, answer.text
    turn = answer.json()
    assert set(turn) == {
        "id",
        "object",
        "session_id",
        "index",
        "created_at",
        "message",
        "reply",
        "finish_reason",
        "usage",
        "memory",
        "timing",
    }
    assert set(turn["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert set(turn["memory"]) == {"version", "generation", "learned", "surprise", "levels"}
    assert set(turn["memory"]["levels"][0]) == {"name", "scope", "updates", "norm", "drift"}
    assert set(turn["timing"]) == {"queue_ms", "first_token_ms", "total_ms", "commit_ms"}
    assert (turn["object"], turn["message"], turn["memory"]["version"]) == ("turn", "hello", 1)


async def events_of(answer: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_stream_carries_the_reply_piece_by_piece(live: Running) -> None:
    await live.new_session("s")
    body = {"message": "hello", "max_tokens": 12, "stream": True, "temperature": 0}
    async with live.http.stream("POST", TURNS, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        created, *tokens, completed, done = await events_of(answer)
    assert created["type"] == "turn.created"
    assert [token["index"] for token in tokens] == list(range(len(tokens)))
    assert completed["type"] == "turn.completed"
    assert "".join(token["text"] for token in tokens) == completed["turn"]["reply"]
    assert {token["turn_id"] for token in tokens} <= {created["turn_id"]} == {completed["turn"]["id"]}
    assert done == "[DONE]"


async def test_stream_refuses_with_a_status_before_its_first_event(live: Running) -> None:
    answer = await live.http.post(TURNS, json={"message": "hello", "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_deadline_passed_is_504_and_teaches_nothing(live: Running) -> None:
    await live.new_session("s")
    body = {"message": "hello", "max_tokens": 1024, "temperature": 0, "timeout_s": 0.05}
    answer = await live.http.post(TURNS, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert (await live.http.get("/v1/sessions/s")).json()["version"] == 0


async def test_deadline_passed_in_mid_stream_is_an_error_event(live: Running) -> None:
    await live.new_session("s")
    body = {"message": "hello", "max_tokens": 1024, "temperature": 0, "timeout_s": 0.2, "stream": True}
    async with live.http.stream("POST", TURNS, json=body) as answer:
        assert answer.status_code == 200
        *_, error, done = await events_of(answer)
    assert (error["type"], error["error"]["code"], done) == ("error", "deadline_exceeded", "[DONE]")


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_cancels_the_turn(live: Running, stream: bool) -> None:
    await live.new_session("s")
    body = json.dumps({"message": "hello", "max_tokens": 1024, "temperature": 0, "stream": stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    head = f"POST {TURNS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    if stream:
        await reader.readuntil(b"turn.token")
    else:
        await until(lambda: not live.service.lifecycle.idle)
    writer.close()
    await until(lambda: live.service.lifecycle.idle)
    session = (await live.http.get("/v1/sessions/s")).json()
    assert (session["version"], session["num_turns"]) == (0, 0)
    assert b"hope_client_disconnects_total 1.0" in live.service.metrics.render()


async def test_slow_stream_reader_is_cut_off_and_its_turn_cancelled(engine: Engine, metrics: Metrics) -> None:
    settings = with_server(max_new_tokens=10**6, outbox_events=4, send_timeout_s=0.3)
    async with running(engine, settings, metrics, send_buffer_bytes=4096) as live:
        await live.new_session("s")
        body = json.dumps({"message": "hello", "max_tokens": 10**6, "temperature": 0, "stream": True}).encode()
        head = f"POST {TURNS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with slow_socket(live.port) as raw:
            raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: b"hope_ws_slow_client_drops_total 1.0" in live.service.metrics.render())
            await until(lambda: live.service.lifecycle.idle)
        assert (await live.http.get("/v1/sessions/s")).json()["version"] == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("message", ""),
        ("message", 3),
        ("message", None),
        ("learn", "yes"),
        ("max_tokens", -1),
        ("max_tokens", 10**9),
        ("max_tokens", "3"),
        ("max_tokens", 1.5),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("seed", 2**63),
        ("seed", 0.5),
        ("stop", ["a"] * 5),
        ("stop", ["a" * 65]),
        ("stop", [""]),
        ("stop", "a"),
        ("stream", 1),
        ("if_version", -1),
        ("timeout_s", 0),
        ("timeout_s", 601),
        ("colour", "red"),
    ],
)
async def test_bad_field_is_400_and_named(live: Running, field: str, value: object) -> None:
    await live.new_session("s")
    answer = await live.http.post(TURNS, json={"message": "hello", field: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (
        400,
        "invalid_request",
        "invalid_request_error",
    )
    assert error["param"].startswith(field)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'"text"', b'{"message": "\\ud800"}'])
async def test_body_that_is_no_turn_is_400(live: Running, body: bytes) -> None:
    await live.new_session("s")
    answer = await live.http.post(TURNS, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_whole_numbers_may_be_written_as_floats(live: Running) -> None:
    await live.new_session("s")
    answer = await live.http.post(TURNS, json={"message": "hello", "max_tokens": 1.0, "seed": 3.0, "if_version": 0.0})
    assert answer.status_code == 200, answer.text


async def test_a_turn_that_names_no_limit_speaks_what_the_server_allows(engine: Engine, metrics: Metrics) -> None:
    async with running(engine, with_server(max_new_tokens=2), metrics) as server:
        await server.new_session("s")
        turn = (await server.http.post(TURNS, json={"message": "hello"})).json()
        assert turn["usage"]["completion_tokens"] <= 2
        assert (await server.http.post(TURNS, json={"message": "hello", "max_tokens": 3})).status_code == 400


async def test_feature_not_offered_is_said_to_be_so(live: Running) -> None:
    answer = await live.http.post(TURNS, json={"message": "hello", "tools": []})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported", "tools")


@pytest.mark.parametrize("key", ["", "a" * 256, "two words"])
async def test_bad_idempotency_key_is_400(live: Running, key: str) -> None:
    answer = await live.http.post(TURNS, json={"message": "hello"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_version_that_is_not_the_head_is_409(live: Running) -> None:
    await live.new_session("s")
    answer = await live.http.post(TURNS, json={"message": "hello", "if_version": 7})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert answer.headers["x-should-retry"] == "false"


async def test_over_the_limit_is_429_with_the_time_to_wait(checkpoint: Path, store_url: str, metrics: Metrics) -> None:
    settings = EngineSettings(checkpoint=checkpoint, turns_per_minute=2)
    engine = await Engine.open(settings, StoreSettings(redis_url=store_url), metrics)
    tenant = f"limited-{uuid.uuid4().hex[:8]}"
    keys = parse_keys(f"k:{tenant}")
    try:
        async with running(engine, with_server(api_keys=keys), metrics) as live:
            headers = {"Authorization": "Bearer k"}
            await live.new_session("s", **headers)
            path, body = "/v1/sessions/s/turns", {"message": "Hello.", "max_tokens": 2}
            for _ in range(2):
                assert (await live.http.post(path, json=body, headers=headers)).status_code == 200
            for stream in (False, True):
                answer = await live.http.post(path, json={**body, "stream": stream}, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
                assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert (await live.http.get("/v1/sessions/s", headers=headers)).json()["version"] == 2
    finally:
        await engine.close()

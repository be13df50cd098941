"""Turns over a websocket: greeting, order, cancel, bad frames, close codes, slow readers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.server.running import receive, running, slow_socket, until, with_server

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from engine import Engine
    from server.metrics import Metrics
    from tests.server.running import Running


def create(message: str = "hello", **fields: Any) -> str:
    # The tiny model never ends a greedy reply by itself.
    turn = {"message": message, "max_tokens": 3, "temperature": 0, **fields}
    return json.dumps({"type": "turn.create", "turn": turn})


async def whole_turn(connection: ClientConnection) -> list[Any]:
    """Events up to the one that ends the turn."""
    events = [await receive(connection)]
    while events[-1]["type"] not in ("turn.completed", "turn.cancelled", "error"):
        events.append(await receive(connection))
    return events


async def test_many_turns_on_one_socket(live: Running) -> None:
    session = await live.new_session("s")
    async with live.socket("s") as connection:
        assert connection.subprotocol == "hope.v1"
        assert await receive(connection) == {"type": "session.ready", "session": session}
        for version in (1, 2, 3):
            await connection.send(create())
            created, *tokens, completed = await whole_turn(connection)
            assert created["type"] == "turn.created"
            assert [token["index"] for token in tokens] == list(range(len(tokens)))
            assert "".join(token["text"] for token in tokens) == completed["turn"]["reply"]
            assert completed["turn"]["memory"]["version"] == version


async def test_tokens_come_one_by_one_and_not_at_the_end(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send(create(max_tokens=1024))
        assert (await receive(connection))["type"] == "turn.created"
        assert (await receive(connection))["type"] == "turn.token"
        assert (await live.http.get("/v1/sessions/s")).json()["version"] == 0, "it is still speaking"


async def test_cancel_leaves_the_memory_of_before(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send(create(max_tokens=1024))
        created = await receive(connection)
        await receive(connection)
        await connection.send('{"type": "turn.cancel"}')
        assert (await whole_turn(connection))[-1] == {"type": "turn.cancelled", "turn_id": created["turn_id"]}
        await connection.send(create())
        assert (await whole_turn(connection))[-1]["turn"]["memory"]["version"] == 1


async def test_cancel_that_arrives_with_its_turn_still_cancels_it(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        for frame in (create(max_tokens=1024), '{"type": "turn.cancel"}', '{"type": "turn.cancel"}'):
            await connection.send(frame)
        assert (await whole_turn(connection))[-1]["type"] == "turn.cancelled"
        await until(lambda: live.service.lifecycle.idle)
        assert (await live.http.get("/v1/sessions/s")).json()["version"] == 0


async def test_cancel_of_nothing_is_harmless(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send('{"type": "turn.cancel"}')
        await connection.send('{"type": "ping"}')
        assert await receive(connection) == {"type": "pong"}


async def test_ping_is_answered_while_a_turn_runs(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send(create(max_tokens=1024))
        await receive(connection)
        await connection.send('{"type": "ping"}')
        seen = [await receive(connection) for _ in range(50)]
        assert {"type": "pong"} in seen


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{", "invalid_request", None),
        ("[" * 100_000, "invalid_request", None),
        ("[]", "invalid_request", None),
        ('{"type": "turn.shout"}', "invalid_request", None),
        ('{"type": "turn.create"}', "invalid_request", "turn"),
        ('{"type": "turn.create", "turn": {"message": ""}}', "invalid_request", "turn.message"),
        ('{"type": "turn.create", "turn": {"message": "a", "n": 2}}', "unsupported", "turn.n"),
        ('{"type": "ping", "loud": true}', "invalid_request", "loud"),
        (b"\x00\x01", "invalid_request", None),
        (create(max_tokens=10**9), "invalid_request", "max_tokens"),
        (create(if_version=7), "conflict", "if_version"),
    ],
)
async def test_bad_frame_is_answered_and_does_not_close(
    live: Running, frame: str | bytes, code: str, param: str | None
) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send(frame)
        error = (await whole_turn(connection))[-1]["error"]
        assert (error["code"], error["param"]) == (code, param)
        await connection.send(create())
        assert (await whole_turn(connection))[-1]["type"] == "turn.completed"


async def test_second_turn_at_once_is_refused_and_the_first_goes_on(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send(create(max_tokens=20))
        await connection.send(create())
        events = [await receive(connection)]
        while events[-1]["type"] != "turn.completed":
            events.append(await receive(connection))
        errors = [event for event in events if event["type"] == "error"]
        assert [error["error"]["code"] for error in errors] == ["conflict"]


async def test_unknown_session_is_told_and_closed_1008(live: Running) -> None:
    async with live.socket("nobody") as connection:
        assert (await receive(connection))["error"]["code"] == "not_found"
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1008


async def test_frame_over_the_limit_is_closed_1009(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send("x" * (live.service.settings.server.max_body_bytes + 1))
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1009


async def test_leaving_in_mid_turn_cancels_it(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send(create(max_tokens=1024))
        await receive(connection)
    await until(lambda: live.service.lifecycle.idle)
    assert (await live.http.get("/v1/sessions/s")).json()["version"] == 0
    assert b"hope_ws_connections 0.0" in live.service.metrics.render()


async def test_reader_that_stops_is_cut_off_and_its_turn_cancelled(engine: Engine, metrics: Metrics) -> None:
    settings = with_server(max_new_tokens=10**6, outbox_events=4, send_timeout_s=0.3)
    async with running(engine, settings, metrics, send_buffer_bytes=4096) as live:
        await live.new_session("s")
        raw = slow_socket(live.port)
        async with live.socket("s", sock=raw, max_queue=1, ping_interval=None, close_timeout=0.1) as connection:
            await receive(connection)
            await connection.send(create(max_tokens=10**6))
            await until(lambda: b"hope_ws_slow_client_drops_total 1.0" in live.service.metrics.render())
            await until(lambda: live.service.lifecycle.idle)
            assert (await live.http.get("/v1/sessions/s")).json()["version"] == 0

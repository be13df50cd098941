"""Stopping: running turns end and commit, new ones are refused, probes still answer, sockets hear 1012."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed

from engine import Health
from server.lifecycle import Lifecycle
from tests.server.running import receive, until

if TYPE_CHECKING:
    from tests.server.running import Running

SLOW = {"message": "hello", "max_tokens": 300, "temperature": 0}


async def test_running_turns_finish_and_commit_before_the_server_stops(live: Running) -> None:
    for name in ("json", "sse", "ws", "new"):
        await live.new_session(name)
    whole = asyncio.create_task(live.http.post("/v1/sessions/json/turns", json=SLOW))
    async with live.socket("ws") as talking, live.socket("new") as idle:
        for connection in (talking, idle):
            assert (await receive(connection))["type"] == "session.ready"
        await talking.send(json.dumps({"type": "turn.create", "turn": SLOW}))
        assert (await receive(talking))["type"] == "turn.created"
        async with live.http.stream("POST", "/v1/sessions/sse/turns", json={**SLOW, "stream": True}) as answer:
            lines = answer.aiter_lines()
            assert "turn.created" in await anext(lines)

            live.server.handle_exit(signal.SIGTERM, None)
            await until(lambda: live.service.lifecycle.draining)
            refused = await live.http.post("/v1/sessions/new/turns", json=SLOW)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert refused.headers["retry-after"]
            assert refused.headers["connection"] == "close"
            assert (await live.http.get("/livez")).status_code == 200
            assert (await live.http.get("/readyz")).status_code == 503
            async with live.socket("new") as late:
                assert (await receive(late))["error"]["code"] == "draining"
                with pytest.raises(ConnectionClosed):
                    await late.recv()
                assert late.close_code == 1012
            await idle.send(json.dumps({"type": "turn.create", "turn": SLOW}))
            assert (await receive(idle))["error"]["code"] == "draining"

            rest = [line async for line in lines if line]
        assert "turn.completed" in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert (await whole).status_code == 200
        while (event := await receive(talking))["type"] == "turn.token":
            continue
        assert event["type"] == "turn.completed"
        for connection in (talking, idle):
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 1012
    await live.task
    for name in ("json", "sse", "ws"):
        assert (await live.engine.session("default", name)).version == 1
    assert (await live.engine.session("default", "new")).version == 0


async def test_second_signal_stops_at_once(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s") as connection:
        await receive(connection)
        await connection.send(json.dumps({"type": "turn.create", "turn": {**SLOW, "max_tokens": 1024}}))
        await receive(connection)
        live.server.handle_exit(signal.SIGTERM, None)
        await until(lambda: live.service.lifecycle.draining)
        live.server.handle_exit(signal.SIGTERM, None)
        async with asyncio.timeout(5):
            await live.task
        with contextlib.suppress(ConnectionClosed):
            while (await receive(connection))["type"] != "turn.completed":
                continue
        assert connection.close_code == 1012


async def test_a_dead_engine_ends_the_process(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dead() -> Health:
        return Health(alive=False, ready=False, reason="the engine's thread does not respond")

    monkeypatch.setattr(live.engine, "health", dead)
    await until(lambda: not live.service.monitor.alive)
    async with asyncio.timeout(5):
        await live.task
    assert live.server.engine_died


async def test_drain_ends_when_its_time_is_up() -> None:
    told: list[str] = []
    lifecycle = Lifecycle(0.05, lambda: told.append("drain"))
    with lifecycle.turn():
        assert not lifecycle.drained
        lifecycle.begin_drain()
        lifecycle.begin_drain()
        assert (told, lifecycle.drained) == (["drain"], False)
        await until(lambda: lifecycle.drained)
        idle_inside = lifecycle.idle
        await lifecycle.wait_until_idle(0.01)
    assert (idle_inside, lifecycle.idle) == (False, True)
    await lifecycle.wait_until_idle(60)

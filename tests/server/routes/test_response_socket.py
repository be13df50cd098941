"""Responses over the websocket that openai's own client opens: many on one socket, and everything that may go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from websockets.exceptions import ConnectionClosed

from server.auth import parse_keys
from tests.server.chatting import session, transcript
from tests.server.responding import FIXED, RESPONSES, check_events, respond, said
from tests.server.running import receive, running, until, with_server

if TYPE_CHECKING:
    from engine import Engine
    from server.metrics import Metrics
    from tests.server.running import Running

KEYS = parse_keys("alice-key:acme, bob-key:other, scraper-key:acme:metrics")
LAST = ("response.completed", "response.incomplete", "error")


def create(words: Any = "Hello.", **fields: Any) -> str:
    return json.dumps({"type": "response.create", "input": words, **FIXED, **fields})


async def events_of(connection: Any, words: str = "Hello.", **fields: Any) -> list[Any]:
    """Asks for a response with openai's client; its events up to the last."""
    await connection.response.create(input=words, **{**FIXED, **fields})
    events = [await connection.recv()]
    while events[-1].type not in LAST:
        events.append(await connection.recv())
    return events


@pytest.fixture
async def locked(engine: Engine, metrics: Metrics) -> AsyncIterator[Running]:
    """A server with keys."""
    async with running(engine, with_server(api_keys=KEYS), metrics) as server:
        yield server


def client_of(live: Running, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key=key, max_retries=0)


async def test_many_responses_on_one_socket(live: Running, client: AsyncOpenAI) -> None:
    async with client.responses.connect() as connection:
        first = await events_of(connection, conversation="s")
        second = await events_of(connection, "And now?", previous_response_id=first[-1].response.id)
        turns = await transcript(live, "s")
        check_events(first, turns[0])
        check_events(second, turns[1])
        # Again: what came after the response that it follows is undone.
        again = await events_of(connection, "Or now?", previous_response_id=first[-1].response.id)
        assert await said(live, "s") == ["Hello.", "Or now?"]
    assert (await client.responses.retrieve(again[-1].response.id)).output == again[-1].response.output
    await until(lambda: b"hope_ws_connections 0.0" in live.service.metrics.render())


async def test_it_is_the_same_turn_as_over_http(live: Running, client: AsyncOpenAI) -> None:
    async with client.responses.connect() as connection:
        mine = (await events_of(connection, conversation="s", instructions="Be kind."))[-1].response
    other = await respond(client, "Hello.", conversation="t", instructions="Be kind.")
    assert (mine.output_text, mine.usage, mine.status) == (other.output_text, other.usage, other.status)
    assert mine.model_dump()["hope"]["memory"] == other.model_dump()["hope"]["memory"]


# How openai's client opens it; newer versions of the library below it want it otherwise.
@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")
async def test_the_client_that_waits_talks_to_it_too(live: Running) -> None:
    def talk() -> list[str]:
        with (
            OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none") as waiting,
            waiting.responses.connect() as connection,
        ):
            kinds: list[str] = []
            for _ in range(2):
                connection.response.create(input="Hello.", conversation="s", **FIXED)
                event = connection.recv()
                while event.type not in LAST:
                    event = connection.recv()
                kinds.append(event.type)
            return kinds

    assert await asyncio.to_thread(talk) == ["response.incomplete"] * 2


async def test_the_handshake_may_name_the_session(live: Running, client: AsyncOpenAI) -> None:
    async with client.responses.connect(extra_headers={"X-Session-ID": "s"}) as connection:
        assert (await events_of(connection))[-1].response.conversation.id == "s"
    assert await said(live, "s") == ["Hello."]


BAD: list[tuple[str | bytes, int, str, str | None]] = [
    ("{", 400, "invalid_request", None),
    ("[]", 400, "invalid_request", "type"),
    (b"\x00\x01", 400, "invalid_request", None),
    ('{"type": "turn.create"}', 400, "invalid_request", "type"),
    ('{"type": "response.steer", "input": "x", "previous_response_id": "y"}', 400, "invalid_request", "type"),
    ('{"type": "response.create", "model": "hope"}', 400, "invalid_request", "input"),
    (create(""), 400, "invalid_request", "input"),
    (create(tools=[{"type": "web_search"}]), 400, "unsupported", "tools"),
    (create(generate=False), 400, "invalid_request", "generate"),
    (create(model="gpt-4"), 404, "not_found", "model"),
    (create(previous_response_id="resp_1"), 404, "not_found", "previous_response_id"),
    (create(previous_response_id=f"resp_{'0' * 24}_s"), 404, "not_found", "previous_response_id"),
    (create("x y " * 9000), 413, "too_large", "input"),
]


async def test_a_bad_frame_is_answered_and_does_not_close(live: Running) -> None:
    async with live.connected(RESPONSES) as connection:
        for frame, status, code, param in BAD:
            await connection.send(frame)
            answer = await receive(connection)
            assert (answer["type"], answer["status"]) == ("error", status), frame
            assert (answer["error"]["code"], answer["error"]["param"]) == (code, param), frame
        await connection.send(create(stream_id="a.lane"))
        first = await receive(connection)
        assert (first["type"], first["stream_id"], first["sequence_number"]) == ("response.created", "a.lane", 0)


async def test_a_second_response_at_once_is_refused_and_the_first_goes_on(live: Running) -> None:
    async with live.connected(RESPONSES) as connection:
        await connection.send(create(max_output_tokens=20, conversation="s"))
        await connection.send(create(stream_id="two"))
        events = [await receive(connection)]
        while events[-1]["type"] != "response.incomplete":
            events.append(await receive(connection))
        (refused,) = [event for event in events if event["type"] == "error"]
        assert (refused["status"], refused["error"]["code"], refused["stream_id"]) == (409, "conflict", "two")
    assert await said(live, "s") == ["Hello."]


async def test_a_failure_in_the_middle_is_one_error_and_the_socket_goes_on(live: Running, client: AsyncOpenAI) -> None:
    async with client.responses.connect() as connection:
        await connection.response.create(input="Hello.", conversation="s", **{**FIXED, "max_output_tokens": 150})
        deleted = False
        event: Any = await connection.recv()
        while event.type not in LAST:
            if not deleted and event.type.endswith("delta"):
                deleted = (await live.http.delete("/v1/sessions/s")).status_code == 200
            event = await connection.recv()
        assert (event.type, event.status, event.error.code) == ("error", 500, "lease_lost")
        assert (await events_of(connection))[-1].type == "response.incomplete"


async def test_leaving_in_mid_response_cancels_it(live: Running) -> None:
    async with live.connected(RESPONSES) as connection:
        await connection.send(create(max_output_tokens=1024, conversation="s"))
        assert (await receive(connection))["type"] == "response.created"
    await until(lambda: live.service.lifecycle.idle)
    assert (await session(live, "s"))["version"] == 0


async def test_a_frame_over_the_limit_is_closed_1009(live: Running) -> None:
    async with live.connected(RESPONSES) as connection:
        await connection.send("x" * (live.service.settings.server.max_body_bytes + 1))
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1009


@pytest.mark.parametrize(("key", "code"), [("wrong-key", "unauthorized"), ("scraper-key", "forbidden")])
async def test_a_key_that_may_not_is_told_and_closed_1008(locked: Running, key: str, code: str) -> None:
    async with client_of(locked, key) as client, client.responses.connect() as connection:
        event: Any = await connection.recv()
        assert (event.type, event.error.code) == ("error", code)
        with pytest.raises((ConnectionClosed, openai.WebSocketConnectionClosedError)):
            await connection.recv()


async def test_a_stopping_server_refuses_with_1012(live: Running) -> None:
    live.service.lifecycle.begin_drain()
    async with live.connected(RESPONSES) as connection:
        assert (await receive(connection))["error"]["code"] == "draining"
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1012


async def test_another_tenants_response_does_not_exist(locked: Running) -> None:
    async with client_of(locked, "alice-key") as alice, client_of(locked, "bob-key") as bob:
        made = await respond(alice, "Hello.", conversation="s")
        # Not even where the other has a session of that name.
        await respond(bob, "Hello.", conversation="s")
        for attempt in (
            bob.responses.retrieve(made.id),
            bob.responses.delete(made.id),
            respond(bob, "Go on.", previous_response_id=made.id),
        ):
            with pytest.raises(openai.NotFoundError) as refused:
                await attempt
            assert refused.value.code == "not_found"
        async with bob.responses.connect() as connection:
            (event,) = await events_of(connection, previous_response_id=made.id)
            assert (event.status, event.error.param) == (404, "previous_response_id")
        assert (await alice.responses.retrieve(made.id)).id == made.id
        again = await respond(alice, "Go on.", previous_response_id=made.id)
        assert again.conversation.id == "s"

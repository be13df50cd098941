"""A turn whose connection breaks is asked for again with its key: fetched if it was learned, else learned, once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hope_client import AsyncHopeClient, ConnectionLost, HopeRequestError, Turn, TurnEvent

from tests.clients.python.cutting import Cutting, cutting
from tests.clients.python.hearing import completed, heard
from tests.server.running import until

Tell = Callable[..., AsyncIterator[TurnEvent]]
ASKED: dict[str, Any] = {"max_tokens": 12, "temperature": 0}


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Cutting]:
    async with cutting(url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Cutting) -> AsyncIterator[AsyncHopeClient]:
    async with AsyncHopeClient(proxy.url, timeout_s=10) as client:
        yield client


@pytest.fixture
async def session_id(client: AsyncHopeClient) -> str:
    await client.create_session(name := uuid.uuid4().hex)
    return name


async def over_socket(client: AsyncHopeClient, session_id: str, **options: Any) -> AsyncIterator[TurnEvent]:
    async with client.stream(session_id) as conversation:
        async for event in conversation.turn("hello", **options):
            yield event


async def over_sse(client: AsyncHopeClient, session_id: str, **options: Any) -> AsyncIterator[TurnEvent]:
    async for event in client.turn_events(session_id, "hello", **options):
        yield event


async def transcript(client: AsyncHopeClient, session_id: str) -> list[Turn]:
    return [turn async for turn in client.transcript(session_id)]


@pytest.mark.parametrize("tell", [over_socket, over_sse])
@pytest.mark.parametrize("where", [b"turn.created", b"turn.token", b"turn.completed"])
async def test_a_stream_that_breaks_is_told_to_its_end(
    client: AsyncHopeClient, session_id: str, proxy: Cutting, tell: Tell, where: bytes
) -> None:
    proxy.cut_at = [where]
    events = [event async for event in tell(client, session_id, **ASKED)]
    assert proxy.cut_at == []
    assert [turn["id"] for turn in await transcript(client, session_id)] == [completed(events)["id"]]
    assert heard(events) == completed(events)["reply"]
    # Told of where something had already been yielded, and only there.
    begun = [number for number, event in enumerate(events) if event["type"] == "turn.created"]
    restarted = [number for number, event in enumerate(events) if event["type"] == "turn.restarted"]
    assert restarted == [number - 1 for number in begun if number]


async def test_a_lost_answer_is_fetched_and_not_learned_twice(
    client: AsyncHopeClient, session_id: str, proxy: Cutting
) -> None:
    proxy.cut_at = [b"HTTP/1.1 200", b"HTTP/1.1 200"]
    turn = await client.turn(session_id, "hello", **ASKED)
    assert proxy.cut_at == []
    assert await transcript(client, session_id) == [turn]


async def test_attempts_are_bounded(session_id: str, proxy: Cutting) -> None:
    proxy.cut_at = [b"HTTP/1.1 200"] * 9
    async with AsyncHopeClient(proxy.url, max_attempts=2) as hasty:
        with pytest.raises(ConnectionLost, match=f"The connection to {proxy.url} was lost"):
            await hasty.turn(session_id, "hello", **ASKED)
    assert len(proxy.cut_at) == 7


async def test_what_is_not_safe_to_repeat_is_not_repeated(client: AsyncHopeClient, proxy: Cutting) -> None:
    proxy.cut_at = [b"HTTP/1.1 201"] * 2
    with pytest.raises(ConnectionLost):
        await client.create_session("s")
    assert len(proxy.cut_at) == 1
    await client.turn("s", "hello", **ASKED)
    with pytest.raises(HopeRequestError) as moved:  # 409 with `x-should-retry: false`
        await client.turn("s", "again", if_version=7)
    assert (moved.value.status, moved.value.code, moved.value.repeatable) == (409, "conflict", False)


async def test_a_conversation_outlives_its_socket(client: AsyncHopeClient, session_id: str, proxy: Cutting) -> None:
    async with client.stream(session_id) as conversation:
        for number in (1, 2):
            events = [event async for event in conversation.turn("hello", **ASKED)]
            assert completed(events)["memory"]["version"] == number
            assert "turn.restarted" not in [event["type"] for event in events]
            proxy.cut_at = [b"pong"]
            await conversation._send({"type": "ping"})
            await until(lambda: not proxy.cut_at)
    assert len(await transcript(client, session_id)) == 2


@pytest.mark.parametrize("tell", [over_socket, over_sse])
async def test_leaving_a_stream_cancels_the_turn(client: AsyncHopeClient, session_id: str, tell: Tell) -> None:
    async with aclosing(tell(client, session_id, max_tokens=1024)) as events:  # type: ignore[type-var]
        async for event in events:
            if event["type"] == "turn.token":
                break
    assert (await client.turn(session_id, "hello", **ASKED))["index"] == 0


async def test_a_cancelled_turn_is_not_asked_for_again(
    client: AsyncHopeClient, session_id: str, proxy: Cutting
) -> None:
    proxy.cut_at = [b"turn.cancelled"]
    async with client.stream(session_id) as conversation:
        events = conversation.turn("hello", max_tokens=1024)
        assert (await anext(events))["type"] == "turn.created"
        await conversation.cancel()
        with pytest.raises(ConnectionLost):
            _ = [event async for event in events]
        assert [event async for event in conversation.rest()] == []
    assert await transcript(client, session_id) == []


async def test_a_cancelled_step_loses_no_event(client: AsyncHopeClient, session_id: str) -> None:
    async with client.stream(session_id) as conversation:
        seen = [await anext(conversation.turn("hello", max_tokens=40, temperature=0))]
        num_cancelled = 0
        while seen[-1]["type"] != "turn.completed":
            try:
                seen.append(await asyncio.wait_for(anext(conversation.rest()), 0.0005))
            except TimeoutError:
                num_cancelled += 1
    assert num_cancelled
    assert heard(seen) == completed(seen)["reply"]
    assert [event["type"] for event in seen].count("turn.created") == 1

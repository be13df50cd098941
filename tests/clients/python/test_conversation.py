"""Turns over a websocket: one at a time, cancelled when asked, and read as slowly as one likes."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from hope_client import AsyncHopeClient, InvalidRequest, TooLarge

from tests.clients.python.hearing import completed, heard
from tests.server.conftest import engine, metrics, store_url

__all__ = ["engine", "metrics", "store_url"]


async def test_a_slow_reader_is_none_to_the_server(url: str) -> None:
    """The client goes on taking events in, so the server never sees a backlog and cuts nobody off."""
    async with AsyncHopeClient(url) as client:
        session = await client.create_session(uuid.uuid4().hex)
        async with client.stream(session) as conversation:
            events = conversation.turn("hello", max_tokens=60, temperature=0)
            seen = [await anext(events)]
            async with asyncio.timeout(20):
                while not (await client.session(session))["num_turns"]:  # noqa: ASYNC110 - a server sets no event here
                    await asyncio.sleep(0.05)
            assert conversation._socket is not None
            assert conversation._socket.transport.is_reading()
            seen += [event async for event in events]
    assert heard(seen) == completed(seen)["reply"]


async def test_one_turn_at_a_time(url: str) -> None:
    async with AsyncHopeClient(url) as client:
        session = await client.create_session(uuid.uuid4().hex)
        async with client.stream(session) as conversation:
            await conversation.cancel()  # nothing runs, nothing happens
            first = conversation.turn("hello", max_tokens=1024)
            assert (await anext(first))["type"] == "turn.created"
            with pytest.raises(RuntimeError, match="still running"):
                conversation.turn("again")
            await conversation.cancel()
            await conversation.cancel()
            assert [event async for event in conversation.rest()][-1]["type"] == "turn.cancelled"
            never = conversation.turn("never asked")
            await conversation.cancel()
            assert [event["type"] async for event in never] == ["turn.cancelled"]
        assert (await client.session(session))["version"] == 0


async def test_a_refused_turn_leaves_the_socket_as_it_was(url: str) -> None:
    async with AsyncHopeClient(url) as client:
        session = await client.create_session(uuid.uuid4().hex)
        async with client.stream(session) as conversation:
            with pytest.raises(InvalidRequest) as refused:
                _ = [event async for event in conversation.turn("hello", temperature=9)]
            assert (refused.value.status, refused.value.param) == (400, "turn.temperature")
            with pytest.raises(TooLarge):
                _ = [event async for event in conversation.turn("x" * 2_000_000)]
            last = [event async for event in conversation.turn("hello", max_tokens=1)][-1]
            assert last["type"] == "turn.completed"

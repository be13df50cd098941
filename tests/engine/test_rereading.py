"""What is read again is what live turns would have made of it."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from engine.core import Said, TurnRequest
from engine.model.portable import unpack_row
from tests.engine.upgrades import BOUND, NEW, OLD, TOLD, live, relearn, tell_everything
from tests.engines import TENANT, opened, say, stored_memory
from tests.tiny import memory_distance


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def test_the_memory_is_that_of_live_turns_with_these_replies(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = await tell_everything(redis_url)
    done = await relearn(redis_url)
    assert (done.sessions, done.relearned, done.turns, done.failed, done.incomplete) == (2, 2, 4, 0, 0)
    async with opened(redis_url, NEW) as new:
        found = {name: await stored_memory(new, name) for name in TOLD}
        for name in TOLD:
            await live(new, f"{name}-live", turns[name], monkeypatch)
            expected = await stored_memory(new, f"{name}-live")
            assert found[name].keys() == expected.keys()
            assert memory_distance(unpack_row(found[name], NEW[0]), unpack_row(expected, NEW[0])) < BOUND


async def test_turns_that_had_read_more_than_their_transcript_are_counted(redis_url: str) -> None:
    async with opened(redis_url, OLD) as old:
        for name, before in (("a", Said("system", "Be kind.")), ("b", Said("user", "Hello.")), ("c", None)):
            messages = [before, Said("user", "Who are you?")] if before else [Said("user", "Who are you?")]
            async for _ in old.chat(TENANT, name, messages, TurnRequest("", max_tokens=2)):
                pass
            await say(old, name, "And now?")
    done = await relearn(redis_url)
    assert (done.relearned, done.turns, done.incomplete) == (3, 6, 2)

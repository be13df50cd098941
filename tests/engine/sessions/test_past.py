"""A turn's place in its session's past: found by its id, with the one before it, as long as it is there."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from engine.errors import NotFound
from engine.sessions.past import num_turns_until, turn_and_last, version_with
from tests.engines import TENANT, opened, say


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def test_a_turn_is_found_with_what_stood_before_it(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        turns = [await say(engine, "s", f"Number {number}.", max_tokens=1) for number in range(3)]
        session = await engine.session(TENANT, "s")
        for number, turn in enumerate(turns):
            assert await num_turns_until(engine.store, TENANT, session, turn.id) == number + 1
            found, last = await turn_and_last(engine.store, TENANT, "s", turn.id)
            assert (found.id, last.id if last else None) == (turn.id, turns[number - 1].id if number else None)
            assert await version_with(engine.store, TENANT, session, number + 1) == number + 1
        assert await version_with(engine.store, TENANT, session, 0) == 0
        await engine.rollback(TENANT, "s", 1)
        for tenant, session_id, turn_id in ((TENANT, "s", turns[1].id), ("o", "s", turns[0].id), (TENANT, "s", "x")):
            with pytest.raises(NotFound):
                await turn_and_last(engine.store, tenant, session_id, turn_id)
        # What was made of a turn later is part of it.
        assert await version_with(engine.store, TENANT, await engine.session(TENANT, "s"), 1) == 4

"""When a session is handed to the worker: turns, surprise, or quiet; what was taken in counts no more."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from redis.asyncio import Redis

from engine.config import EngineSettings
from engine.handover import is_due
from engine.sessions.keys import WORK_DUE, session_name
from tests.engines import TENANT, opened, say

SETTINGS = EngineSettings(turns_per_consolidation=4, surprise_per_consolidation=10.0)


@pytest.mark.parametrize(
    ("num_turns", "surprise", "due"),
    [(1, 0.0, False), (3, 9.9, False), (3, 10.0, True), (1, 50.0, True), (4, 0.0, True), (8, 1.0, True)],
)
def test_so_many_turns_or_so_much_surprise(num_turns: int, surprise: float, due: bool) -> None:
    assert is_due(SETTINGS, num_turns, surprise) == due


def test_without_a_threshold_surprise_does_not_count() -> None:
    assert not is_due(EngineSettings(surprise_per_consolidation=0.0), 1, 1e9)


async def test_surprise_adds_up_over_replicas_until_the_worker_has_taken_it_in(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    name = f"s-{secrets.token_hex(4)}"
    line = session_name(TENANT, name)
    settings: dict[str, Any] = {"idle_consolidation_s": 500.0, "turns_per_consolidation": 1000}
    patient = {**settings, "surprise_per_consolidation": 1e6}
    async with opened(redis_url, **patient) as engine, opened(redis_url, **patient) as other:
        await engine.create_session(TENANT, name, {}, False)
        each = [(await say(one, name, "My dog is called Rex.")).memory.surprise for one in (engine, other, engine)]
        assert (await engine.store.head(TENANT, name)).surprise == pytest.approx(sum(each))
        seconds, _ = await client.time()
        assert (await client.zscore(WORK_DUE, line) or 0) / 1000 > seconds + 400, "it may go quiet first"

        # A rollback takes it back, a fork takes it along.
        await engine.rollback(TENANT, name, 2)
        assert (await engine.store.head(TENANT, name)).surprise == pytest.approx(sum(each[:2]))
        fork = await engine.fork(TENANT, name, 1, None)
        assert (await engine.store.head(TENANT, fork.id)).surprise == pytest.approx(each[0])

        # What the worker took in is no news.
        lease = await engine.store.acquire(TENANT, name, "worker", 1.0)
        await engine.store.pass_turns(lease, await engine.store.head(TENANT, name), 1, each[0])
        await engine.store.release(lease)
        head = await engine.store.head(TENANT, name)
        assert (head.num_consolidated_turns, head.session.version) == (1, 4)
        assert head.surprise == pytest.approx(each[1])
    async with opened(redis_url, **settings, surprise_per_consolidation=each[1] + 0.01) as engine:
        await say(engine, name, "My dog is called Rex.")
        seconds, _ = await client.time()
        assert (await client.zscore(WORK_DUE, line) or 1e15) / 1000 <= seconds + 1, "at once"
    await client.zrem(WORK_DUE, line)
    await client.aclose()

"""A generation of another model than the one that is served."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from engine.consolidation.policy import SESSION_POLICY, GenerationPolicy
from engine.consolidation.session import SessionConsolidation
from engine.consolidation.suite import load_suite
from engine.consolidation.tenant import TenantConsolidation
from engine.consolidation.worker import Worker
from engine.errors import OtherModel
from tests.engine.upgrades import NEW, publish, tell_everything
from tests.engines import TENANT, Recorder, opened, say


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def test_turns_run_under_generation_0_where_the_active_one_is_of_another_model(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await tell_everything(redis_url)
    number = await publish(redis_url)
    recorder = Recorder()
    async with opened(redis_url, NEW, recorder) as new:
        await new.create_session(TENANT, "fresh", {}, False)
        assert [(await say(new, "fresh", "Hello.")).memory.generation for _ in range(2)] == [0, 0]
        assert recorder.transfers.count(("load", "other_model")) == 2
        assert len([one for one in caplog.records if "hope relearn" in one.getMessage()]) == 1
        assert TENANT not in caplog.text
        with pytest.raises(OtherModel):
            await new.activate_generation(TENANT, number)


async def test_no_generation_is_built_upon_one_of_another_model(redis_url: str) -> None:
    await tell_everything(redis_url)
    await publish(redis_url)
    observer, stop = Recorder(), asyncio.Event()
    async with opened(redis_url, NEW) as new:
        sessions = SessionConsolidation(*NEW, new.store, observer, SESSION_POLICY)
        tenants = TenantConsolidation(*NEW, new.store, observer, GenerationPolicy(), load_suite())
        working = asyncio.create_task(Worker(new.store, sessions, tenants, observer).run(stop))
        async with asyncio.timeout(30):
            ended = await new.consolidate(TENANT, wait=True)
        stop.set()
        await working
        sessions.close()
        tenants.close()
    assert (ended.status, ended.to_generation) == ("failed", None)
    assert "hope relearn" in (ended.reason or "")

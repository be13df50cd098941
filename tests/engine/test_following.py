"""A generation of another model than the one that is served."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

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

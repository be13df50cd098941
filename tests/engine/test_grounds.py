"""A session of another model than the one that is served: refused clearly, and changed by nobody."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from engine.core import Said, TurnCompleted, TurnRequest
from engine.errors import Conflict, OtherModel
from tests.engine.upgrades import NEW, OLD, relearn, tell_everything
from tests.engines import TENANT, Recorder, everything, opened, say


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def test_until_then_every_use_is_refused_and_names_the_mending(redis_url: str) -> None:
    await tell_everything(redis_url)
    before = await everything(redis_url)
    recorder = Recorder()
    async with opened(redis_url, NEW, recorder) as new:
        for learn in (True, False):
            with pytest.raises(OtherModel, match="hope relearn"):
                await say(new, "s-1", "Who is Rex?", learn=learn)
        with pytest.raises(OtherModel, match="hope relearn"):
            await new.memory(TENANT, "s-1")
        with pytest.raises(OtherModel, match="version 3"):
            await new.fork(TENANT, "s-1", None, None)
        after = await everything(redis_url)
        assert {key for key in after if after[key] != before.get(key)} == {b"hope:1:{acme:s-1}:head"}, (
            "the lease's count"
        )
        assert recorder.transfers.count(("load", "other_model")) == 3
        # What takes no part in thinking goes on.
        assert len((await new.turns(TENANT, "s-1", 9, None))[0]) == 3
        exported = await new.export_session(TENANT, "s-1")
        with pytest.raises(Conflict, match="another model"):
            await new.import_session(TENANT, exported, "copy")
    async with opened(redis_url, OLD) as old:
        assert (await old.import_session(TENANT, exported, "copy")).num_turns == 3


async def test_versions_of_the_old_model_stay_listed_but_are_not_gone_back_to(redis_url: str) -> None:
    turns = await tell_everything(redis_url)
    await relearn(redis_url)
    said: list[Said] = []
    for turn in turns["s-1"]:
        said += [Said("user", turn.message), Said("assistant", turn.reply)]
    async with opened(redis_url, NEW) as new:
        assert [one.version for one in await new.versions(TENANT, "s-1")] == [4, 3, 2, 1]
        for version in (1, 3):
            with pytest.raises(OtherModel, match=f"version {version} .* another model"):
                await new.rollback(TENANT, "s-1", version)
            with pytest.raises(OtherModel, match=f"version {version} .* another model"):
                await new.fork(TENANT, "s-1", version, None)
        edited = new.chat(TENANT, "s-1", [*said[:2], Said("user", "Edited.")], TurnRequest("", max_tokens=2))
        with pytest.raises(OtherModel, match=r"version 1 .* another model"):
            async for _ in edited:
                pass
        going_on = new.chat(TENANT, "s-1", [*said, Said("user", "And now?")], TurnRequest("", max_tokens=2))
        events = [event async for event in going_on]
        assert isinstance(events[-1], TurnCompleted)
        assert (await new.rollback(TENANT, "s-1", 4)).num_turns == 3
        assert (await new.rollback(TENANT, "s-1", 0)).num_turns == 0

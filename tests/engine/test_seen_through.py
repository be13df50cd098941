"""Work that is seen through: a cancel does not stop it, closing waits for it, a failure nobody waits for is logged."""

from __future__ import annotations

import asyncio

import pytest

from engine.seen_through import SeenThrough
from engine.sessions.records import Lease
from tests.engines import TENANT, opened, say


async def test_a_cancel_comes_too_late() -> None:
    see_through, may_end = SeenThrough(), asyncio.Event()

    async def work() -> str:
        await may_end.wait()
        return "done"

    waiting = asyncio.create_task(see_through(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    may_end.set()
    assert await waiting == "done"


async def test_what_nobody_waits_for_is_waited_for_at_the_end_and_its_failure_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    see_through, done = SeenThrough(), []

    async def work(fails: bool) -> None:
        await asyncio.sleep(0.01)
        done.append(fails)
        if fails:
            raise ValueError("as asked for")

    see_through.begin(work(False))
    see_through.begin(work(True))
    assert done == []
    await see_through.wait()
    assert sorted(done) == [False, True]
    await asyncio.sleep(0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "as asked for" in caplog.text


async def test_a_turn_is_answered_before_its_lease_is_given_back_and_the_next_one_waits_for_that(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis_url) as engine:
        session_id = (await engine.create_session(TENANT, None, {}, False)).id
        may_release, release = asyncio.Event(), engine.store.release

        async def held_back(lease: Lease) -> None:
            await may_release.wait()
            await release(lease)

        monkeypatch.setattr(engine.store, "release", held_back)
        first = await say(engine, session_id, "My dog is called Rex.")
        assert (await engine.session(TENANT, session_id)).version == first.memory.version == 1
        following = asyncio.create_task(say(engine, session_id, "And he likes the river."))
        done, _ = await asyncio.wait({following}, timeout=0.3)
        assert not done
        may_release.set()
        assert (await following).memory.version == 2

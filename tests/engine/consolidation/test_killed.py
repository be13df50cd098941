"""A tenant's consolidation cut off at every step, doubled, and under a clock that is wrong: a generation is there whole
or not at all, nothing is learned twice, and the next worker goes on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from signal import SIGKILL

import pytest
from redis.asyncio import Redis

from engine.errors import Conflict
from engine.sessions import keys, records
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.generations import Standing
from engine.sessions.store import SessionStore
from tests.engine.consolidation.crowd import Crowd
from tests.engine.consolidation.killed import QUICK
from tests.engines import TENANT

REPOSITORY = Path(__file__).parents[3]
BEFORE, AFTER = Standing(0, 0, 0), Standing(1, 1, 1)


@pytest.fixture
def crowd(store: SessionStore) -> Crowd:
    return Crowd(store)


@asynccontextmanager
async def workers(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.engine.consolidation.killed", url),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 120) == b"ready\n"
    yield process
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


async def one(process: asyncio.subprocess.Process, dies_at: int) -> int:
    """A worker's exit status."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{dies_at}\n".encode())
    return int(await asyncio.wait_for(process.stdout.readline(), 60))


async def check_whole(crowd: Crowd, client: Redis) -> Standing:
    """Either no generation or one that can be read; of another nothing that stays."""
    generations = crowd.store.generations
    standing = await generations.standing(TENANT)
    kept = await generations.all(TENANT)
    assert standing in (BEFORE, AFTER)
    assert list(kept) == ([1] if standing == AFTER else [])
    chunks = {key async for key in client.scan_iter("*:generation:*")}
    if standing == AFTER:
        made, _ = await generations.load(TENANT, 1)
        assert (await generations.consolidation(TENANT, made.consolidation_id)).status == "accepted"
        chunks -= {name.encode() for name in keys.TenantKeys(TENANT).chunks(made.mark, made.num_chunks)}
    assert all([await client.pttl(key) > 0 for key in chunks])
    return standing


async def test_killed_at_any_step_it_leaves_all_or_nothing_and_the_next_worker_goes_on(
    crowd: Crowd, client: Redis, embedded: EmbeddedStore
) -> None:
    await crowd.good(0)
    await crowd.store.generations.hand_over(TENANT)
    begun = {key: await client.dump(key) async for key in client.scan_iter("*") if not key.endswith(b":lease")}
    seen: list[Standing] = []
    async with workers(embedded.url) as process:
        while True:
            await client.flushall()
            for key, value in begun.items():
                assert value is not None
                await client.restore(key, 0, value)
            status = await one(process, len(seen) + 1)
            seen.append(await check_whole(crowd, client))
            if status == 0:
                break
            assert status == -SIGKILL
            # As if the minute had passed in which a claim must be renewed.
            stale = await client.zadd(keys.WORK_CLAIMED, {keys.session_name(TENANT, ""): 0}, xx=True, ch=True)
            if stale or await client.exists(keys.WORK_DUE):
                assert await one(process, 0) == 0
            assert await check_whole(crowd, client) == AFTER
            assert await crowd.learned() == {"good-0": 1}
            statuses = [found.status for found in await crowd.store.generations.consolidations(TENANT)]
            assert sorted(set(statuses) - {"empty"}) == ["accepted"]
            assert statuses.count("accepted") == 1
            assert not await client.exists(keys.WORK_DUE, keys.WORK_CLAIMED, keys.WORK_TOKENS)
    assert len(seen) > 10
    assert seen == sorted(seen, key=lambda standing: standing.active), "it is there from one step on"
    assert seen[0] == BEFORE


async def test_two_workers_at_once_make_one_generation(crowd: Crowd) -> None:
    await crowd.good(0, 1)
    asked = await crowd.store.generations.open(TENANT)
    ends = await asyncio.gather(*(crowd.consolidate(QUICK, asked) for _ in range(2)), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["Conflict", "Consolidation"]
    assert await crowd.store.generations.standing(TENANT) == AFTER
    # Nor does one make another that wakes up later.
    await crowd.good(2)
    with pytest.raises(Conflict):
        await crowd.consolidate(QUICK, asked)
    assert await crowd.learned() == {"good-0": 1, "good-1": 1}


async def test_a_workers_clock_decides_nothing(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for number, days in enumerate((400, -400, 0)):

        class Skewed(datetime):
            offset = timedelta(days=days)

            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + cls.offset

        monkeypatch.setattr(records, "datetime", Skewed)
        await crowd.good(number)
        ended = await crowd.consolidate(replace(QUICK, keep_generations=2))
        assert (ended.status, ended.to_generation) == ("accepted", number + 1)
        ids.append(ended.id)
    monkeypatch.setattr(records, "datetime", datetime)
    views = await crowd.store.generations.views(TENANT)
    assert [(view.generation, view.active) for view in views] == [(3, True), (2, False), (0, False)]
    assert views[1].created_at is not None
    assert views[1].created_at < datetime.now(UTC).isoformat()
    assert [found.id for found in await crowd.store.generations.consolidations(TENANT)] == ids[::-1]
    assert await crowd.learned() == {"good-0": 1, "good-1": 1, "good-2": 1}


async def test_turns_that_told_a_tenant_nothing_are_passed_over_once(crowd: Crowd, client: Redis) -> None:
    noise = QUICK.surprise_ceiling + 1
    await crowd.told("noise", ("q#x", ""), ("z~~", ""), surprise=noise)
    first, second = await crowd.consolidate(QUICK), await crowd.consolidate(QUICK)
    assert (first.status, first.num_sessions) == ("empty", 1)
    assert (second.status, second.num_sessions, second.reason) == ("empty", 0, "nothing new to take in")
    assert await crowd.store.generations.standing(TENANT) == BEFORE
    # What comes after it is taken in, and the generation knows how far that is.
    await crowd.told("noise", ("The river.", "Nice"))
    assert (await crowd.consolidate(QUICK)).num_turns == 1
    assert await crowd.learned() == {"noise": 3}
    # Under another generation it may be news again: there it is looked at once more.
    assert await crowd.store.generations.quarantine.passed(TENANT, 1) == {}
    session = await crowd.store.get(TENANT, "noise")
    await crowd.store.generations.forget(TENANT, session)
    assert keys.TenantKeys(TENANT).passed.encode() in [key async for key in client.scan_iter("*")]
    assert list(await client.hkeys(keys.TenantKeys(TENANT).passed)) == [b"generation"]

"""Leases: one holder at a time, waiting for the present one, fences that only grow."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import LeaseLost, NotFound, Overloaded
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import SESSION, TENANT, held, make_session


async def test_a_second_holder_waits_and_is_then_told_when_to_come_back(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    async with held(store):
        begun = time.monotonic()
        with pytest.raises(Overloaded) as refusal:
            await store.acquire(TENANT, SESSION, "second", wait_s=0.1)
        assert 0.1 <= time.monotonic() - begun < 1.0
        assert refusal.value.retry_after_s is not None
        assert 1.0 <= refusal.value.retry_after_s <= 15.0


async def test_a_waiting_holder_gets_the_lease_when_it_is_given_back(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    first = await store.acquire(TENANT, SESSION, "first", 0.0)
    second = asyncio.create_task(store.acquire(TENANT, SESSION, "second", wait_s=5.0))
    await asyncio.sleep(0.05)
    assert not second.done()
    await store.release(first)
    lease = await asyncio.wait_for(second, 1.0)
    assert (lease.owner, lease.fence > first.fence) == ("second", True)


async def test_giving_back_a_lost_lease_does_not_take_it_from_its_holder(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    old = await store.acquire(TENANT, SESSION, "first", 0.0)
    await store.release(old)
    new = await store.acquire(TENANT, SESSION, "second", 0.0)
    await store.release(old)
    await store.renew(new)
    with pytest.raises(LeaseLost):
        await store.renew(old)


async def test_a_renewed_lease_outlives_its_first_time(embedded: EmbeddedStore, client: Redis) -> None:
    store = await SessionStore.connect(embedded.url, StoreSettings(lease_ttl_s=0.4))
    await store.create(TENANT, make_session())
    lease = await store.acquire(TENANT, SESSION, "first", 0.0)
    for _ in range(4):
        await asyncio.sleep(0.15)
        await store.renew(lease)
    with pytest.raises(Overloaded):
        await store.acquire(TENANT, SESSION, "second", 0.0)
    # Unrenewed it falls to whoever waits.
    assert (await store.acquire(TENANT, SESSION, "second", 2.0)).fence == lease.fence + 1
    await store.close()


async def test_there_is_no_lease_on_what_is_not_there(store: SessionStore, client: Redis) -> None:
    with pytest.raises(NotFound):
        await store.acquire(TENANT, SESSION, "owner", 1.0)
    assert await client.dbsize() == 0


async def test_leases_of_many_sessions_do_not_wait_for_each_other(store: SessionStore) -> None:
    names = [f"s-{number}" for number in range(100)]
    await asyncio.gather(*(store.create(TENANT, make_session(name)) for name in names))
    leases = await asyncio.gather(*(store.acquire(TENANT, name, "owner", 0.0) for name in names))
    assert [lease.session_id for lease in leases] == names

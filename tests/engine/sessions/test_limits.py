"""Credit: it is shared, it runs out, it comes back with time, and what was used is taken even into debt."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from engine.core import Session
from engine.errors import RateLimited
from engine.sessions.keys import limit_bucket
from engine.sessions.limits import LEARNED, TOKENS, TURNS, Limits
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import TENANT, keys_like


async def later(client: Redis, kind: str, seconds: float, tenant: str = TENANT) -> None:
    """As if so much time had passed."""
    key = limit_bucket(tenant, kind)
    at_ms = int(await client.hget(key, "at_ms") or 0)
    await client.hset(key, "at_ms", at_ms - round(seconds * 1000))


async def test_so_many_in_a_minute_and_no_more(store: SessionStore, client: Redis) -> None:
    limiter = store.limiter(Limits(turns=6))
    for _ in range(6):
        await limiter.take(TENANT, {TURNS: 1})
    with pytest.raises(RateLimited, match="6 turns a minute") as refused:
        await limiter.take(TENANT, {TURNS: 1})
    assert refused.value.retry_after_s == pytest.approx(10, abs=0.5), "six a minute is one in ten seconds"
    await later(client, TURNS, 5)
    with pytest.raises(RateLimited) as refused:
        await limiter.take(TENANT, {TURNS: 1})
    assert refused.value.retry_after_s == pytest.approx(5, abs=0.5), "a refusal costs nothing"
    await later(client, TURNS, refused.value.retry_after_s or 0)
    await limiter.take(TENANT, {TURNS: 1})
    with pytest.raises(RateLimited):
        await limiter.take(TENANT, {TURNS: 1})
    await later(client, TURNS, 10_000)
    for _ in range(6):
        await limiter.take(TENANT, {TURNS: 1})
    with pytest.raises(RateLimited):
        await limiter.take(TENANT, {TURNS: 1})


async def test_replicas_share_it_and_tenants_do_not(store: SessionStore) -> None:
    limiters = [store.limiter(Limits(turns=20)) for _ in range(4)]
    taken = await asyncio.gather(
        *(limiter.take(TENANT, {TURNS: 1}) for limiter in limiters for _ in range(10)), return_exceptions=True
    )
    assert sum(one is None for one in taken) == 20
    assert all(one is None or isinstance(one, RateLimited) for one in taken)
    await limiters[0].take("other", {TURNS: 1})


async def test_a_turn_that_began_may_run_into_debt(store: SessionStore, client: Redis) -> None:
    limiter = store.limiter(Limits(tokens=60))
    await limiter.take(TENANT, {TOKENS: 59})
    await limiter.take(TENANT, {TOKENS: 50})
    await limiter.take(TENANT, {TOKENS: 11}, anyhow=True)
    with pytest.raises(RateLimited) as refused:
        await limiter.take(TENANT, {TOKENS: 1})
    assert refused.value.retry_after_s == pytest.approx(61, abs=0.5)
    await later(client, TOKENS, 61)
    await limiter.take(TENANT, {TOKENS: 1})


async def test_all_kinds_or_none(store: SessionStore, client: Redis) -> None:
    limiter = store.limiter(Limits(turns=10, tokens=100, learned=5))
    await limiter.take(TENANT, {TURNS: 1, TOKENS: 20, LEARNED: 20})
    with pytest.raises(RateLimited, match="5 tokens to learn from"):
        await limiter.take(TENANT, {TURNS: 1, TOKENS: 20, LEARNED: 20})
    levels = [float(await client.hget(limit_bucket(TENANT, kind), "level") or 0) for kind in (TURNS, TOKENS, LEARNED)]
    assert levels == pytest.approx([9, 80, -15], abs=0.1), "what was refused took nothing"
    await limiter.take(TENANT, {TURNS: 1, TOKENS: 20})


async def test_no_limit_asks_nothing_of_the_store(store: SessionStore, client: Redis) -> None:
    limiter = store.limiter(Limits(turns=1))
    await limiter.take(TENANT, {TOKENS: 10**9, LEARNED: 10**9})
    assert await keys_like(client, "*") == []


async def test_a_session_learns_so_much_in_an_hour_shared_by_replicas(store: SessionStore, client: Redis) -> None:
    limiters = [store.limiter(Limits(learned_of_session=100)) for _ in range(2)]
    assert await limiters[0].learn(TENANT, "gone", 500) == 0
    assert await client.keys("*") == [], "of a session that is not there nothing is remembered"
    now = "2026-01-01T00:00:00Z"
    await store.create(TENANT, Session("s", now, now))
    waits = await asyncio.gather(*(limiters[at % 2].learn(TENANT, "s", 30) for at in range(10)))
    assert sorted(waits)[:4] == [0, 0, 0, 0]
    assert all(0 < wait <= 3600 for wait in sorted(waits)[4:])
    await limiters[0].learn(TENANT, "s", -500, anyhow=True)
    assert await limiters[1].learn(TENANT, "s", 100) == 0, "no more comes back than there was"
    assert await limiters[1].learn(TENANT, "s", 1) > 0
    await store.delete(TENANT, "s")
    assert await keys_like(client, "*}:learned") == []


async def test_a_full_bucket_is_forgotten(store: SessionStore, client: Redis) -> None:
    await store.limiter(Limits(turns=6)).take(TENANT, {TURNS: 1})
    assert 9_000 < await client.pttl(limit_bucket(TENANT, TURNS)) <= 11_000


async def test_a_clock_that_is_set_back_gives_and_takes_nothing(store: SessionStore, client: Redis) -> None:
    limiter = store.limiter(Limits(turns=2))
    await limiter.take(TENANT, {TURNS: 1})
    await later(client, TURNS, -3600)
    await limiter.take(TENANT, {TURNS: 1})
    with pytest.raises(RateLimited):
        await limiter.take(TENANT, {TURNS: 1})

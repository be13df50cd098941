"""The worker's line: nothing is lost, nothing is with two workers at once, what is finished is gone."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from engine.errors import LeaseLost
from engine.sessions.connection import Connection
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.queue import ConsolidationQueue
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import SESSION, TENANT, everything

CLAIM_TTL_S = 0.1


async def test_what_is_put_in_line_is_handed_out_once_and_gone_when_finished(
    store: SessionStore, client: Redis
) -> None:
    await store.enqueue_consolidation(TENANT, SESSION)
    await store.enqueue_consolidation(TENANT, SESSION)
    work = await store.next_consolidation("worker", 0.0)
    assert work is not None
    assert (work.tenant, work.session_id, work.attempt) == (TENANT, SESSION, 1)
    assert await store.next_consolidation("other worker", 0.0) is None
    await store.renew_consolidation(work)
    await store.finish_consolidation(work)
    assert await everything(client) == {}


async def test_a_session_put_in_line_while_it_is_worked_on_comes_again(store: SessionStore) -> None:
    await store.enqueue_consolidation(TENANT, SESSION)
    first = await store.next_consolidation("worker", 0.0)
    assert first is not None
    await store.enqueue_consolidation(TENANT, SESSION)
    assert await store.next_consolidation("other worker", 0.0) is None
    await store.finish_consolidation(first)
    again = await store.next_consolidation("other worker", 0.0)
    assert again is not None
    assert (again.session_id, again.attempt) == (SESSION, 1)


async def test_those_due_longest_come_first_and_those_not_yet_due_wait(store: SessionStore) -> None:
    await store.enqueue_consolidation(TENANT, "later", delay_s=60)
    for name in ("first", "second"):
        await store.enqueue_consolidation(TENANT, name)
        await asyncio.sleep(0.005)
    found = [await store.next_consolidation("worker", 0.0) for _ in range(3)]
    assert [work and work.session_id for work in found] == ["first", "second", None]


async def test_a_session_comes_due_while_a_worker_waits(store: SessionStore) -> None:
    await store.enqueue_consolidation(TENANT, SESSION, delay_s=0.3)
    begun = time.monotonic()
    work = await store.next_consolidation("worker", block_s=5.0)
    assert work is not None
    assert 0.25 <= time.monotonic() - begun < 2.0


async def test_a_further_turn_moves_the_time_but_never_away_from_a_session_that_is_due(
    store: SessionStore,
) -> None:
    await store.enqueue_consolidation(TENANT, SESSION, delay_s=0.05)
    await store.enqueue_consolidation(TENANT, SESSION, delay_s=60)
    await asyncio.sleep(0.1)
    assert await store.next_consolidation("worker", 0.0) is None
    await store.enqueue_consolidation(TENANT, SESSION)
    await store.enqueue_consolidation(TENANT, SESSION, delay_s=60)
    assert await store.next_consolidation("worker", 0.0) is not None


async def test_a_killed_workers_session_goes_to_the_next_and_the_old_claim_counts_no_more(
    embedded: EmbeddedStore, client: Redis
) -> None:
    connection = Connection(embedded.url)
    queue = ConsolidationQueue(connection, claim_ttl_s=CLAIM_TTL_S)
    await queue.put(TENANT, SESSION, 0.0)
    dead = await queue.claim("killed", 0.0)
    assert dead is not None
    heir = await queue.claim("heir", 2.0)
    assert heir is not None
    assert (heir.session_id, heir.attempt) == (SESSION, 2)
    with pytest.raises(LeaseLost):
        await queue.keep(dead)
    await queue.finish(dead)
    await queue.keep(heir)
    await queue.finish(heir)
    assert await everything(client) == {}
    await connection.close()


async def test_a_kept_claim_does_not_go_stale(embedded: EmbeddedStore, client: Redis) -> None:
    connection = Connection(embedded.url)
    queue = ConsolidationQueue(connection, claim_ttl_s=0.4)
    await queue.put(TENANT, SESSION, 0.0)
    work = await queue.claim("worker", 0.0)
    assert work is not None
    for _ in range(5):
        await asyncio.sleep(0.15)
        await queue.keep(work)
        assert await queue.claim("other", 0.0) is None
    await connection.close()


async def test_a_session_that_kills_every_worker_is_given_up_until_its_next_turn(
    embedded: EmbeddedStore, client: Redis
) -> None:
    connection = Connection(embedded.url)
    queue = ConsolidationQueue(connection, claim_ttl_s=0.01)
    await queue.put(TENANT, SESSION, 0.0)
    attempts = []
    while (work := await queue.claim("killed", 0.5)) is not None:
        attempts.append(work.attempt)
    assert attempts == [1, 2, 3, 4, 5]
    await queue.put(TENANT, SESSION, 0.0)
    work = await queue.claim("worker", 0.0)
    assert work is not None
    assert work.attempt == 1
    await connection.close()


async def test_many_workers_share_the_line_without_overlap(store: SessionStore) -> None:
    names = {f"s-{number}" for number in range(40)}
    for name in names:
        await store.enqueue_consolidation(TENANT, name)
    done: list[str] = []

    async def work_off(consumer: str) -> None:
        while (work := await store.next_consolidation(consumer, 0.0)) is not None:
            done.append(work.session_id)
            await store.finish_consolidation(work)

    await asyncio.gather(*(work_off(f"worker {number}") for number in range(5)))
    assert sorted(done) == sorted(names)

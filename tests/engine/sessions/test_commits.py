"""Laws 3, 7 and 10 for a commit: it comes back bit for bit, once or not at all, only from the holder."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import Conflict, CorruptMemory, LeaseLost, NotFound
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.keys import SessionKeys
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import (
    SESSION,
    TENANT,
    commit_turn,
    everything,
    frozen_writer,
    held,
    keys_like,
    make_commit,
    make_session,
    make_turn,
)

LARGE = random.Random(0).randbytes(1_300_000)


@pytest.fixture
async def session(store: SessionStore) -> SessionKeys:
    await store.create(TENANT, make_session())
    return SessionKeys(TENANT, SESSION)


@pytest.mark.parametrize("size_bytes", [0, 1, 512 * 1024, 512 * 1024 + 1, 768 * 1024, 1_300_000])
async def test_law_3_a_memory_of_any_size_comes_back_bit_for_bit(
    store: SessionStore, client: Redis, session: SessionKeys, size_bytes: int
) -> None:
    after = await commit_turn(store, 0, LARGE[:size_bytes])
    assert await store.load_memory(TENANT, SESSION) == (1, LARGE[:size_bytes])
    assert after.memory_bytes == size_bytes
    sizes = [await client.strlen(key) for key in await keys_like(client, "*:memory:*")]
    assert sum(sizes) == size_bytes
    assert max(sizes) <= (512 if size_bytes <= 512 * 1024 else 256) * 1024


async def test_law_3_every_retained_version_comes_back_bit_for_bit_and_older_ones_are_gone(
    store: SessionStore, client: Redis, session: SessionKeys
) -> None:
    memories = {version: LARGE + str(version).encode() for version in range(1, 7)}
    for version, memory in memories.items():
        await commit_turn(store, version - 1, memory)
    for version in (4, 5, 6):
        assert await store.load_memory(TENANT, SESSION, version) == (version, memories[version])
    for version in (1, 2, 3, 7):
        with pytest.raises(NotFound):
            await store.load_memory(TENANT, SESSION, version)
    kept = await store.versions(TENANT, SESSION)
    assert [version.version for version in kept] == [6, 5, 4]
    assert [version.turn_id for version in kept] == ["turn-5", "turn-4", "turn-3"]
    assert [(version.num_turns, version.num_tokens) for version in kept] == [(6, 60), (5, 50), (4, 40)]
    assert len(await keys_like(client, "*:memory:*")) == 3 * kept[0].num_chunks
    for key in await keys_like(client, "*:memory:*"):
        assert await client.ttl(key) == -1


async def test_a_new_session_has_no_memory_yet(store: SessionStore, session: SessionKeys) -> None:
    assert await store.load_memory(TENANT, SESSION) == (0, None)
    await commit_turn(store, 0, b"memory")
    assert await store.load_memory(TENANT, SESSION, 0) == (0, None)


async def test_a_memory_that_is_not_what_was_committed_is_refused(
    store: SessionStore, client: Redis, session: SessionKeys
) -> None:
    await commit_turn(store, 0, LARGE)
    chunks = await keys_like(client, "*:memory:*")
    await client.setrange(chunks[2], 5, b"?")
    with pytest.raises(CorruptMemory):
        await store.load_memory(TENANT, SESSION)
    await client.delete(chunks[2])
    with pytest.raises(CorruptMemory):
        await store.load_memory(TENANT, SESSION)


async def test_a_commit_moves_everything_together(store: SessionStore, session: SessionKeys) -> None:
    turn = make_turn(0, generation=4)
    async with held(store) as lease:
        after = (await store.commit(lease, 0, make_commit(b"memory", turn, key="key"))).session
    assert after == await store.get(TENANT, SESSION)
    facts = (after.version, after.generation, after.num_turns, after.num_tokens, after.memory_bytes)
    assert facts == (1, 4, 1, 10, 6)
    assert after.updated_at > after.created_at
    assert await store.turns(TENANT, SESSION, 10, None) == ([turn], False)
    assert await store.stored_turn(TENANT, SESSION, "key", "body") == turn


async def test_a_consolidation_is_a_version_without_a_turn(store: SessionStore, session: SessionKeys) -> None:
    await commit_turn(store, 0, b"one")
    await commit_turn(store, 1, b"two")
    assert (await store.head(TENANT, SESSION)).num_consolidated_turns == 0
    async with held(store) as lease:
        after = (await store.commit(lease, 2, replace(make_commit(b"three", None), num_tokens=0))).session
    assert (after.version, after.num_turns, after.num_tokens) == (3, 2, 20)
    assert (await store.head(TENANT, SESSION)).num_consolidated_turns == 2
    await commit_turn(store, 3, b"four")
    assert (await store.head(TENANT, SESSION)).num_consolidated_turns == 2
    async with held(store) as lease:
        partly = replace(make_commit(b"five", None), num_consolidated_turns=1, num_tokens=0)
        await store.commit(lease, 4, partly)
    assert (await store.head(TENANT, SESSION)).num_consolidated_turns == 1
    assert [version.turn_id for version in await store.versions(TENANT, SESSION)] == [None, "turn-3", None]


async def test_law_7_a_repeated_commit_happens_once(store: SessionStore, client: Redis, session: SessionKeys) -> None:
    commit = make_commit(LARGE, make_turn(0), key="key")
    async with held(store) as lease:
        first = await store.commit(lease, 0, commit)
        before = await everything(client)
        assert await store.commit(lease, 0, commit) == first
    assert {**await everything(client), session.lease: lease.owner.encode()} == before
    # Also after the lease is gone, and after the session has moved on.
    assert await store.commit(lease, 0, commit) == first
    moved = await commit_turn(store, 1, b"next")
    assert (await store.commit(lease, 0, commit)).session == moved
    assert await store.load_memory(TENANT, SESSION, 1) == (1, LARGE)
    for key in await keys_like(client, "*:memory:*"):
        assert await client.ttl(key) == -1


async def test_law_7_a_turn_cancelled_at_any_moment_of_its_commit_is_whole_or_nothing(
    store: SessionStore, client: Redis, session: SessionKeys
) -> None:
    outcomes = set()
    version = 0
    for attempt in range(40):
        lease = await store.acquire(TENANT, SESSION, f"owner {attempt}", 1.0)
        memory = LARGE + str(attempt).encode()
        before = await store.load_memory(TENANT, SESSION)
        task = asyncio.create_task(store.commit(lease, version, make_commit(memory, make_turn(version))))
        await asyncio.sleep(attempt * 0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.release(lease)
        await asyncio.sleep(0.02)  # what was sent before the cancellation arrives, or never does
        head = await store.get(TENANT, SESSION)
        outcomes.add(head.version - version)
        after = (version + 1, memory) if head.version == version + 1 else before
        assert await store.load_memory(TENANT, SESSION) == after
        assert head.num_turns == head.version
        assert len((await store.turns(TENANT, SESSION, 100, None))[0]) == head.version
        version = head.version
    assert 0 in outcomes
    # The next commit sweeps up what the cancelled ones laid down.
    await commit_turn(store, version, LARGE)
    kept = await store.versions(TENANT, SESSION)
    assert len(await keys_like(client, "*:memory:*")) == sum(old.num_chunks for old in kept)


async def test_law_7_what_a_killed_writer_laid_down_is_not_seen_and_expires(
    store: SessionStore, client: Redis, session: SessionKeys, embedded: EmbeddedStore
) -> None:
    async with frozen_writer(embedded, SESSION, LARGE):
        pass
    assert await store.load_memory(TENANT, SESSION) == (0, None)
    assert await store.turns(TENANT, SESSION, 10, None) == ([], False)
    left = [*await keys_like(client, "*:memory:*"), session.staged]
    assert len(left) == 6
    for key in left:
        assert 0 < await client.ttl(key) <= 60


async def test_law_10_an_old_version_cannot_commit(store: SessionStore, client: Redis, session: SessionKeys) -> None:
    await commit_turn(store, 0, b"one")
    await commit_turn(store, 1, b"two")
    async with held(store) as lease:
        before = await everything(client)
        for version in (0, 1, 3):
            with pytest.raises(Conflict):
                await store.commit(lease, version, make_commit(LARGE, make_turn(version), key="key"))
        assert await everything(client) == before


async def test_law_10_an_expired_lease_cannot_commit_even_if_nobody_took_it(
    embedded: EmbeddedStore, client: Redis
) -> None:
    store = await SessionStore.connect(embedded.url, StoreSettings(lease_ttl_s=0.05))
    await store.create(TENANT, make_session())
    lease = await store.acquire(TENANT, SESSION, "slow", 0.0)
    await asyncio.sleep(0.08)
    with pytest.raises(LeaseLost):
        await store.commit(lease, 0, make_commit(b"late", make_turn(0)))
    with pytest.raises(LeaseLost):
        await store.renew(lease)
    assert await store.load_memory(TENANT, SESSION) == (0, None)
    assert not await keys_like(client, "*:memory:*")
    await store.close()


async def test_law_10_an_old_fence_cannot_commit(store: SessionStore, client: Redis, session: SessionKeys) -> None:
    old = await store.acquire(TENANT, SESSION, "one", 0.0)
    await client.delete(session.lease)  # as if it had expired
    new = await store.acquire(TENANT, SESSION, "two", 0.0)
    assert new.fence > old.fence
    with pytest.raises(LeaseLost):
        await store.commit(old, 0, make_commit(b"old", make_turn(0)))
    # An owner that takes its own lease twice holds only the second.
    again = await store.acquire(TENANT, SESSION, "two", 0.0)
    with pytest.raises(LeaseLost):
        await store.commit(new, 0, make_commit(b"old", make_turn(0)))
    await store.release(new)
    assert (await store.commit(again, 0, make_commit(b"new", make_turn(0)))).session.version == 1
    assert await store.load_memory(TENANT, SESSION) == (1, b"new")


async def go_back(store: SessionStore, version: int, memory: bytes) -> None:
    async with held(store) as lease:
        head = await store.get(TENANT, SESSION)
        record, stored = await store.load_version(TENANT, SESSION, version)
        assert record is not None
        assert stored == memory
        commit = replace(make_commit(memory, None), num_tokens=0, levels=record.levels, back_to=record)
        await store.commit(lease, head.version, commit)


async def test_going_back_undoes_turns_and_versions_and_nothing_else(
    store: SessionStore, client: Redis, session: SessionKeys
) -> None:
    for index in range(3):
        await commit_turn(store, index, LARGE[: 600_000 + index], key=f"key-{index}")
    before = await store.head(TENANT, SESSION)
    await go_back(store, 2, LARGE[:600_001])
    head = await store.head(TENANT, SESSION)
    assert (head.session.version, head.session.num_turns, head.session.num_tokens) == (4, 2, 20)
    assert (head.session.metadata, head.session.created_at) == (before.session.metadata, before.session.created_at)
    assert await store.load_memory(TENANT, SESSION) == (4, LARGE[:600_001])
    assert [(one.version, one.turn_id) for one in await store.versions(TENANT, SESSION)] == [
        (4, "turn-1"), (2, "turn-1"), (1, "turn-0"),
    ]  # fmt: skip
    assert [turn.id for turn in (await store.turns(TENANT, SESSION, 10, None))[0]] == ["turn-0", "turn-1"]
    chunks = sum(one.num_chunks for one in await store.versions(TENANT, SESSION))
    assert len(await keys_like(client, "*:memory:*")) == chunks, "no undone memory is left"
    # The key of an undone turn may be used again; the others still say what they were used for.
    assert await store.stored_turn(TENANT, SESSION, "key-2", "body") is None
    assert await store.stored_turn(TENANT, SESSION, "key-1", "body") is not None
    await commit_turn_at(store, 4, 2, key="key-2")
    assert [turn.index for turn in (await store.turns(TENANT, SESSION, 10, None))[0]] == [0, 1, 2]


async def commit_turn_at(store: SessionStore, version: int, index: int, key: str) -> None:
    async with held(store) as lease:
        await store.commit(lease, version, make_commit(b"again", make_turn(index), key=key))


async def test_a_version_that_was_gone_back_to_outlives_the_first_one_of_its_memory(
    store: SessionStore, client: Redis, session: SessionKeys
) -> None:
    for index in range(2):
        await commit_turn(store, index, bytes([index]) * 100)
    await go_back(store, 1, bytes(100))
    for index in range(1, 4):
        await commit_turn_at(store, index + 2, index, key=f"key-{index}")
    assert [one.version for one in await store.versions(TENANT, SESSION)] == [6, 5, 4]
    await store.delete(TENANT, SESSION)
    assert await keys_like(client, "*") == []

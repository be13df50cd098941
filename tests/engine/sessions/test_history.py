"""The transcript in pages; law 7 for a repeated request: the stored turn or a conflict, never another."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import Conflict, NotFound
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import (
    SESSION,
    TENANT,
    commit_turn,
    everything,
    held,
    make_commit,
    make_session,
    make_turn,
)


async def test_the_transcript_is_paged_in_order(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    for index in range(12):  # past 10, so that the order is that of numbers
        await commit_turn(store, index, b"memory")
    seen: list[int] = []
    after, more = None, True
    while more:
        page, more = await store.turns(TENANT, SESSION, 5, after)
        seen += [turn.index for turn in page]
        after = page[-1].id
    assert seen == list(range(12))
    assert await store.turns(TENANT, SESSION, 5, after) == ([], False)


async def test_a_session_without_turns_has_an_empty_transcript(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    assert await store.turns(TENANT, SESSION, 5, None) == ([], False)


async def test_a_page_after_an_unknown_turn_is_refused(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    with pytest.raises(NotFound) as refusal:
        await store.turns(TENANT, SESSION, 5, "turn-7")
    assert refusal.value.param == "after"


async def test_law_7_a_retried_request_gets_the_stored_turn(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    turn = make_turn(0, message='"{Ünïcode}"\n\x00 🐕')
    async with held(store) as lease:
        await store.commit(lease, 0, make_commit(b"memory", turn, key="key", digest="body"))
    assert await store.stored_turn(TENANT, SESSION, "key", "body") == turn
    assert await store.stored_turn(TENANT, SESSION, "another key", "body") is None


async def test_law_7_a_key_with_another_body_is_a_conflict(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"memory", key="key")
    with pytest.raises(Conflict):
        await store.stored_turn(TENANT, SESSION, "key", "another body")


async def test_law_7_two_replicas_with_one_key_learn_once(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    # Both have looked before either has committed.
    assert await store.stored_turn(TENANT, SESSION, "key", "body") is None
    await commit_turn(store, 0, b"memory", key="key")
    async with held(store) as lease:
        before = await everything(client)
        with pytest.raises(Conflict):
            await store.commit(lease, 1, make_commit(b"again", make_turn(1), key="key"))
        assert await everything(client) == before


async def test_a_key_is_forgotten_after_its_time(embedded: EmbeddedStore, client: Redis) -> None:
    store = await SessionStore.connect(embedded.url, StoreSettings(idempotency_ttl_s=1))
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"memory", key="key")
    assert await store.stored_turn(TENANT, SESSION, "key", "body") == (await _all(store))[0]
    await asyncio.sleep(1.05)
    assert await store.stored_turn(TENANT, SESSION, "key", "another body") is None
    # And may be used anew; the old record is swept up.
    await commit_turn(store, 1, b"memory", key="key")
    await asyncio.sleep(1.05)
    await commit_turn(store, 2, b"memory", key="another key")
    found = await everything(client)
    (records,) = [value for name, value in found.items() if name.endswith(":idempotency")]
    (expiries,) = [value for name, value in found.items() if name.endswith(":idempotency_expiry")]
    assert isinstance(records, dict)
    assert isinstance(expiries, list)
    assert len(records) == len(expiries) == 1
    await store.close()


async def _all(store: SessionStore) -> list[object]:
    return [*(await store.turns(TENANT, SESSION, 100, None))[0]]


async def test_a_reader_beside_a_busy_writer_always_finds_a_whole_memory(
    embedded: EmbeddedStore, client: Redis
) -> None:
    store = await SessionStore.connect(embedded.url, StoreSettings(keep_versions=1))
    await store.create(TENANT, make_session())
    writing = asyncio.create_task(_write(store, num_turns=60))
    seen: set[int] = set()
    while not writing.done():
        version, memory = await store.load_memory(TENANT, SESSION)
        assert memory == (None if version == 0 else bytes([version]) * 600_000)
        seen.add(version)
    await writing
    assert len(seen) > 3
    await store.close()


async def _write(store: SessionStore, num_turns: int) -> None:
    for index in range(num_turns):
        await commit_turn(store, index, bytes([index + 1]) * 600_000)

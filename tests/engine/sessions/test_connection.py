"""The store's failures: refusals that are safe to repeat, and law 7 where the answer to a commit is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import exceptions
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import CommitUnknown, LeaseLost, StoreUnavailable
from engine.sessions import commits
from engine.sessions.connection import Connection
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
from tests.engine.sessions.wire import Wire

LARGE = bytes(1_000_000)


@pytest.fixture
async def wire(embedded: EmbeddedStore) -> AsyncIterator[Wire]:
    async with Wire(embedded) as wire:
        yield wire


@pytest.fixture
async def far_store(wire: Wire, client: Redis) -> AsyncIterator[SessionStore]:
    """A store behind the wire, with one session of one turn: its scripts are loaded."""
    store = await SessionStore.connect(wire.url, StoreSettings())
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"one")
    yield store
    await store.close()


async def test_a_store_that_is_not_there_is_unavailable_soon(tmp_path: Path) -> None:
    store = await SessionStore.connect(f"unix://{tmp_path}/nothing.sock", StoreSettings())
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert time.monotonic() - begun < 0.5
    with pytest.raises(StoreUnavailable) as refusal:
        await store.get(TENANT, SESSION)
    assert refusal.value.retry_after_s == 1.0
    assert str(tmp_path) not in refusal.value.message
    await store.close()


async def test_law_7_a_commit_whose_answer_was_lost_happened_once(
    far_store: SessionStore, wire: Wire, client: Redis
) -> None:
    async with held(far_store) as lease:
        wire.lose_reply(b"EVALSHA", and_go_down=False)
        after = (await far_store.commit(lease, 1, make_commit(LARGE, make_turn(1)))).session
    assert wire.num_lost == 1
    assert (after.version, after.num_turns, after.num_tokens) == (2, 2, 20)
    assert await far_store.get(TENANT, SESSION) == after
    assert await far_store.load_memory(TENANT, SESSION) == (2, LARGE)


async def test_law_7_a_store_that_vanishes_while_committing_leaves_the_outcome_unknown_until_asked_again(
    far_store: SessionStore, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_VERIFY_S", 0.2)
    lease = await far_store.acquire(TENANT, SESSION, "owner", 1.0)
    commit = make_commit(LARGE, make_turn(1), key="key")
    wire.lose_reply(b"EVALSHA", and_go_down=True)
    with pytest.raises(CommitUnknown) as unknown:
        await far_store.commit(lease, 1, commit)
    assert unknown.value.retry_after_s is None  # nothing that invites a repeat
    wire.come_back()
    after = (await far_store.commit(lease, 1, commit)).session
    assert (after.version, after.num_turns) == (2, 2)
    assert await far_store.load_memory(TENANT, SESSION) == (2, LARGE)
    assert await far_store.stored_turn(TENANT, SESSION, "key", "body") == commit.turn


async def test_law_7_a_store_that_comes_back_in_time_is_asked_what_happened(
    far_store: SessionStore, wire: Wire
) -> None:
    async with held(far_store) as lease:
        wire.lose_reply(b"EVALSHA", and_go_down=True)
        commit = make_commit(LARGE, make_turn(1))
        asyncio.get_running_loop().call_later(0.5, wire.come_back)
        after = (await far_store.commit(lease, 1, commit)).session
    assert after.version == 2
    assert await far_store.load_memory(TENANT, SESSION) == (2, LARGE)


async def test_a_create_whose_answer_was_lost_is_no_conflict(far_store: SessionStore, wire: Wire) -> None:
    wire.lose_reply(b"EVALSHA", and_go_down=False)
    session = make_session("s-2")
    await far_store.create(TENANT, session)
    assert wire.num_lost == 1
    assert await far_store.get(TENANT, "s-2") == session


async def test_a_delete_whose_answer_was_lost_is_done(far_store: SessionStore, wire: Wire, client: Redis) -> None:
    await far_store.create(TENANT, make_session("s-2"))
    await far_store.delete(TENANT, "s-2")  # loads the script
    wire.lose_reply(b"EVALSHA", and_go_down=False)
    await far_store.delete(TENANT, SESSION)
    assert wire.num_lost == 1
    assert await everything(client) == {}


async def test_law_8_a_frozen_writer_wakes_to_a_deleted_session(
    store: SessionStore, client: Redis, embedded: EmbeddedStore
) -> None:
    await store.create(TENANT, make_session())
    async with frozen_writer(embedded, SESSION, LARGE) as writer:
        await store.delete(TENANT, SESSION)
        assert await everything(client) == {}
        with pytest.raises(LeaseLost):
            await writer.wake()
    assert await everything(client) == {}


async def test_law_10_a_frozen_writer_wakes_to_anothers_commit(
    store: SessionStore, client: Redis, embedded: EmbeddedStore
) -> None:
    await store.create(TENANT, make_session())
    async with frozen_writer(embedded, SESSION, LARGE) as writer:
        await client.delete(SessionKeys(TENANT, SESSION).lease)  # as if it had expired
        await commit_turn(store, 0, b"another's")
        with pytest.raises(LeaseLost):
            await writer.wake()
    assert await store.load_memory(TENANT, SESSION) == (1, b"another's")
    assert len(await keys_like(client, "*:memory:*")) == 1


async def test_law_7_a_full_store_refuses_and_keeps_the_memory_of_before(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"one", key="key")
    lease = await store.acquire(TENANT, SESSION, "owner", 1.0)
    before = await everything(client)
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable) as refusal:
            await store.commit(lease, 1, make_commit(LARGE, make_turn(1)))
        assert refusal.value.retry_after_s is not None
        with pytest.raises(StoreUnavailable):
            await store.create(TENANT, make_session("s-2"))
        assert await store.load_memory(TENANT, SESSION) == (1, b"one")
    finally:
        await client.config_set("maxmemory", 0)
    assert await everything(client) == before
    assert (await store.commit(lease, 1, make_commit(LARGE, make_turn(1)))).session.version == 2


async def test_law_7_a_store_that_fills_up_between_memory_and_head_writes_nothing_of_the_head(
    store: SessionStore, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"one")
    lease = await store.acquire(TENANT, SESSION, "owner", 1.0)
    run = Connection.run

    async def run_when_full(self: Connection, script: str, keys: list[str], args: list[str]) -> object:
        if script == "commit":
            await client.config_set("maxmemory", 1)
        return await run(self, script, keys, args)

    before = await everything(client)
    monkeypatch.setattr(Connection, "run", run_when_full)
    try:
        with pytest.raises(StoreUnavailable):
            await store.commit(lease, 1, make_commit(b"two", make_turn(1), key="key"))
    finally:
        await client.config_set("maxmemory", 0)
    staged = {name for name in await everything(client) if name not in before}
    assert all(":memory:2." in name or name.endswith(":staged") for name in staged)
    assert {name: value for name, value in (await everything(client)).items() if name in before} == before


async def test_a_read_only_store_still_reads(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"one")
    lease = await store.acquire(TENANT, SESSION, "owner", 1.0)
    await client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable):
            await store.commit(lease, 1, make_commit(b"two", make_turn(1)))
        with pytest.raises(StoreUnavailable):
            await store.enqueue_consolidation(TENANT, SESSION)
        assert await store.load_memory(TENANT, SESSION) == (1, b"one")
    finally:
        await client.replicaof("NO", "ONE")
    assert (await store.commit(lease, 1, make_commit(b"two", make_turn(1)))).session.version == 2


async def test_scripts_are_loaded_again_after_the_store_forgot_them(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"one")
    await client.script_flush()
    assert (await commit_turn(store, 1, b"two")).version == 2


async def test_our_own_mistakes_are_not_called_the_stores(embedded: EmbeddedStore) -> None:
    connection = Connection(embedded.url)
    with pytest.raises(exceptions.ResponseError):
        await connection.batch([["GET"]])
    await connection.close()

"""A session that begins with a past: whole or not at all, and nobody else's is touched."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.core import Session, Turn
from engine.errors import Conflict, StoreUnavailable
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.keys import SessionKeys
from engine.sessions.records import Head
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import SESSION, TENANT, commit_turn, everything, keys_like, make_session, make_turn
from tests.engine.sessions.wire import Wire

LEVELS = ("titans", "cms.fast")


def past(num_turns: int, session_id: str = SESSION) -> tuple[Head, list[Turn]]:
    turns = [replace(make_turn(index), session_id=session_id) for index in range(num_turns)]
    session = replace(make_session(session_id), version=num_turns, num_turns=num_turns, memory_bytes=6)
    return Head(session, num_turns // 2, f"d{num_turns - 1}"), turns


async def adopt(store: SessionStore, num_turns: int, memory: bytes | None = b"memory") -> Session:
    head, turns = past(num_turns)
    return await store.adopt(TENANT, head, memory, LEVELS, turns, {f"d{turn.index}": turn.index for turn in turns})


@pytest.mark.parametrize("num_turns", [1, 199, 201, 1000])
@pytest.mark.parametrize("size_bytes", [6, 700_000])
async def test_it_has_its_memory_and_its_transcript(
    store: SessionStore, client: Redis, num_turns: int, size_bytes: int
) -> None:
    memory = b"x" * size_bytes
    made = await adopt(store, num_turns, memory)
    head, turns = past(num_turns)
    assert await store.head(TENANT, SESSION) == replace(head, session=made)
    assert await store.history(TENANT, SESSION) == {f"d{index}": index for index in range(num_turns)}
    assert await store.find_history(TENANT, SESSION, ["none", f"d{num_turns - 1}"]) == [None, num_turns - 1]
    assert await store.load_memory(TENANT, SESSION) == (num_turns, memory)
    assert [turn.id for turn in await store.turns_at(TENANT, SESSION, 0, num_turns)] == [turn.id for turn in turns]
    (version,) = await store.versions(TENANT, SESSION)
    assert (version.turn_id, version.levels, version.num_turns) == (turns[-1].id, LEVELS, num_turns)
    assert (await store.list(TENANT, 10, None))[0] == [made]
    for key in await keys_like(client, "*"):
        assert await client.ttl(key) == -1, key
        assert "arriving" not in key


async def test_it_goes_on_like_any_other(store: SessionStore, client: Redis) -> None:
    await adopt(store, 2)
    after = await commit_turn(store, 2, b"more")
    assert (after.version, after.num_turns) == (3, 3)
    await store.delete(TENANT, SESSION)
    assert await keys_like(client, "*") == []


async def test_one_that_has_read_nothing(store: SessionStore) -> None:
    await adopt(store, 0, None)
    assert await store.load_memory(TENANT, SESSION) == (0, None)
    assert await store.versions(TENANT, SESSION) == []


async def test_a_taken_id_is_a_conflict_and_its_session_is_not_touched(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"theirs")
    before = await everything(client)
    with pytest.raises(Conflict):
        await adopt(store, 3)
    assert await everything(client) == before


async def test_of_two_at_once_one_is_made(store: SessionStore) -> None:
    found = await asyncio.gather(*(adopt(store, 2, bytes([n])) for n in range(6)), return_exceptions=True)
    assert sum(isinstance(one, Conflict) for one in found) == 5
    assert (await store.versions(TENANT, SESSION))[0].num_turns == 2


async def test_what_was_dropped_while_it_was_written_is_said_and_nothing_is_made(
    embedded: EmbeddedStore, store: SessionStore, client: Redis
) -> None:
    async with Wire(embedded) as wire:
        behind = await SessionStore.connect(wire.url, StoreSettings())
        wire.hold_back(b"EVALSHA")
        task = asyncio.create_task(adopt(behind, 2))
        await asyncio.wait_for(wire.held.wait(), 5)
        (chunk,) = await keys_like(client, "*:memory:*")
        assert 0 < await client.ttl(chunk) <= 60, "a writer that never wakes leaves nothing for good"
        await client.delete(chunk)
        wire.let_go()
        with pytest.raises(StoreUnavailable, match="evict"):
            await task
        await behind.close()
    assert await keys_like(client, f"{SessionKeys(TENANT, SESSION).head.removesuffix('head')}*") == []
    await adopt(store, 1)

"""Sessions: made, listed, changed and removed; law 8: nobody else's can be seen, and none leaves a trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import Conflict, LeaseLost, NotFound
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

LARGE = bytes(range(256)) * 4096  # 1 MiB: four chunks


async def test_a_session_comes_back_as_it_was_made(store: SessionStore) -> None:
    session = make_session()
    await store.create(TENANT, session)
    assert await store.get(TENANT, SESSION) == session
    head = await store.head(TENANT, SESSION)
    assert (head.session, head.num_consolidated_turns) == (session, 0)


async def test_an_id_is_taken_once(store: SessionStore) -> None:
    session = make_session()
    await store.create(TENANT, session)
    with pytest.raises(Conflict):
        await store.create(TENANT, make_session())
    assert await store.get(TENANT, SESSION) == session
    await store.create("another tenant", make_session())


async def test_the_list_is_paged_in_a_stable_order(store: SessionStore) -> None:
    names = [f"s-{number:02}" for number in range(25)]
    for name in reversed(names):
        await store.create(TENANT, make_session(name))
    await store.create("other", make_session("s-00-other"))
    seen: list[str] = []
    after, more = None, True
    while more:
        page, more = await store.list(TENANT, 10, after)
        seen += [session.id for session in page]
        after = seen[-1]
        # Neither a new session before the cursor nor the loss of the cursor itself disturbs the walk.
        await store.create(TENANT, make_session(f"a-{len(seen)}"))
        await store.delete(TENANT, after)
    assert seen == names


async def test_a_page_that_ends_the_list_says_so(store: SessionStore) -> None:
    for name in "abc":
        await store.create(TENANT, make_session(name))
    assert [len((await store.list(TENANT, limit, None))[0]) for limit in (2, 3, 4)] == [2, 3, 3]
    assert [(await store.list(TENANT, limit, None))[1] for limit in (2, 3, 4)] == [True, False, False]
    assert await store.list(TENANT, 3, "c") == ([], False)
    assert await store.list("nobody", 3, None) == ([], False)


async def test_the_list_passes_over_a_name_without_a_session(store: SessionStore, client: Redis) -> None:
    for name in "abcd":
        await store.create(TENANT, make_session(name))
    # What a crash between the two steps of a delete, seen from the index, leaves behind.
    await client.delete(SessionKeys(TENANT, "b").head, SessionKeys(TENANT, "c").head)
    page, more = await store.list(TENANT, 2, None)
    assert ([session.id for session in page], more) == (["a", "d"], False)
    page, more = await store.list(TENANT, 1, None)
    assert ([session.id for session in page], more) == (["a"], True)


async def test_metadata_and_consent_change_and_memory_does_not(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"memory")
    changed = await store.update(TENANT, SESSION, {"a": "b"}, None)
    assert (changed.metadata, changed.contribute, changed.version) == ({"a": "b"}, False, 1)
    changed = await store.update(TENANT, SESSION, None, True)
    assert (changed.metadata, changed.contribute, changed.version) == ({"a": "b"}, True, 1)
    changed = await store.update(TENANT, SESSION, {}, False)
    assert (changed.metadata, changed.contribute) == ({}, False)
    assert await store.load_memory(TENANT, SESSION) == (1, b"memory")


async def test_a_commit_leaves_what_the_owner_changed_meanwhile(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    async with held(store) as lease:
        await store.update(TENANT, SESSION, {"a": "b"}, True)
        await store.commit(lease, 0, make_commit(b"memory", make_turn(0)))
    session = await store.get(TENANT, SESSION)
    assert (session.metadata, session.contribute, session.version) == ({"a": "b"}, True, 1)


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.get("mallory", SESSION),
        lambda store: store.head("mallory", SESSION),
        lambda store: store.update("mallory", SESSION, {"a": "b"}, True),
        lambda store: store.delete("mallory", SESSION),
        lambda store: store.acquire("mallory", SESSION, "owner", 0.0),
        lambda store: store.load_memory("mallory", SESSION),
        lambda store: store.load_memory("mallory", SESSION, 1),
        lambda store: store.versions("mallory", SESSION),
        lambda store: store.turns("mallory", SESSION, 10, None),
    ],
    ids=["get", "head", "update", "delete", "acquire", "load", "load version", "versions", "turns"],
)
async def test_law_8_another_tenants_session_is_not_found_and_not_touched(
    store: SessionStore, client: Redis, use: Callable[[SessionStore], Awaitable[object]]
) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"memory", key="key")
    before = await everything(client)
    with pytest.raises(NotFound):
        await use(store)
    assert await everything(client) == before


async def test_law_8_another_tenant_sees_no_list_and_no_stored_turn(store: SessionStore) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, b"memory", key="key")
    assert await store.list("mallory", 10, None) == ([], False)
    assert await store.stored_turn("mallory", SESSION, "key", "body") is None


async def test_law_8_delete_leaves_no_key_behind(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    for index in range(5):
        await commit_turn(store, index, LARGE + bytes([index]), key=f"key {index}")
        await store.enqueue_consolidation(TENANT, SESSION)
    assert await store.next_consolidation("worker", 0.0) is not None
    await store.enqueue_consolidation(TENANT, SESSION, delay_s=100)
    await store.acquire(TENANT, SESSION, "left behind", 0.0)
    assert len(await everything(client)) > 10
    await store.delete(TENANT, SESSION)
    assert await everything(client) == {}
    with pytest.raises(NotFound):
        await store.delete(TENANT, SESSION)
    assert await everything(client) == {}


async def test_law_8_delete_takes_nothing_from_others(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session("s-2"))
    await store.create("other", make_session())
    before = await everything(client)
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, LARGE, key="key")
    await store.delete(TENANT, SESSION)
    assert await everything(client) == before


async def test_law_8_delete_finds_a_memory_that_was_laid_down_but_never_committed(
    store: SessionStore, client: Redis, embedded: EmbeddedStore
) -> None:
    await store.create(TENANT, make_session())
    async with frozen_writer(embedded, SESSION, LARGE):
        pass
    assert len(await keys_like(client, "*:memory:*")) == 4
    await store.delete(TENANT, SESSION)
    assert await everything(client) == {}


async def test_law_8_who_held_the_lease_of_a_deleted_session_cannot_commit(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    lease = await store.acquire(TENANT, SESSION, "owner", 0.0)
    await store.delete(TENANT, SESSION)
    with pytest.raises(LeaseLost):
        await store.commit(lease, 0, make_commit(LARGE, make_turn(0)))
    with pytest.raises(LeaseLost):
        await store.renew(lease)
    assert await everything(client) == {}

    # Nor when another session has taken the id, and its first lease the same number.
    anew = make_session()
    await store.create(TENANT, anew)
    other = await store.acquire(TENANT, SESSION, "other", 0.0)
    assert other.fence == lease.fence
    with pytest.raises(LeaseLost):
        await store.commit(lease, 0, make_commit(LARGE, make_turn(0)))
    assert await store.get(TENANT, SESSION) == anew


async def test_every_key_carries_the_prefix_and_layout_version(store: SessionStore, client: Redis) -> None:
    await store.create(TENANT, make_session())
    await commit_turn(store, 0, LARGE, key="key")
    await store.enqueue_consolidation(TENANT, SESSION)
    names = await everything(client)
    assert names
    assert all(name.startswith("hope:1:{") for name in names)


async def test_two_stores_see_the_same_sessions(store: SessionStore, embedded: EmbeddedStore) -> None:
    other = await SessionStore.connect(embedded.url, StoreSettings())
    session = make_session()
    await store.create(TENANT, session)
    await commit_turn(store, 0, b"memory")
    assert await other.load_memory(TENANT, SESSION) == (1, b"memory")
    await other.close()

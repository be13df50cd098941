"""Sessions in a real cluster of three: all that happens to one stays in one slot, and slots may fail and move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from redis.crc import key_slot

from engine.config import StoreSettings
from engine.errors import Conflict, RateLimited, StoreUnavailable
from engine.sessions.keys import SessionKeys
from engine.sessions.limits import LEARNED, TOKENS, TURNS, Limits
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import TENANT, held, make_commit, make_session, make_turn
from tests.engine.sessions.servers import Server, cluster, told, until_whole
from tests.engine.sessions.test_generations import WEIGHTS, publication

LARGE = bytes(range(256)) * 4096
NAMES = [f"s-{number:02}" for number in range(12)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    stack = contextlib.AsyncExitStack()
    with asyncio.Runner() as runner:
        yield runner.run(stack.enter_async_context(cluster(tmp_path_factory.mktemp("cluster"))))
        runner.run(stack.aclose())


@pytest.fixture
async def store(nodes: list[Server]) -> AsyncIterator[SessionStore]:
    for node in nodes:
        async with node.client() as client:
            await client.flushall()
    # One node is enough to find the others by.
    url = f"redis+cluster://127.0.0.1:{nodes[1].port}"
    store = await SessionStore.connect(url, StoreSettings(keep_versions=3))
    yield store
    await store.close()


async def _names(nodes: list[Server]) -> list[list[bytes]]:
    """The keys of each node."""
    found = []
    for node in nodes:
        async with node.client() as client:
            found.append([key async for key in client.scan_iter("*")])
    return found


async def _turn(store: SessionStore, session_id: str, index: int, memory: bytes, key: str | None = None) -> None:
    async with held(store, session_id=session_id) as lease:
        turn = replace(make_turn(index), session_id=session_id)
        await store.commit(lease, index, make_commit(memory, turn, key=key))


async def test_sessions_spread_over_the_cluster_and_live_as_elsewhere(store: SessionStore, nodes: list[Server]) -> None:
    await store.ping()
    for name in NAMES:
        await store.create(TENANT, make_session(name))
        await _turn(store, name, 0, LARGE, key="one")
        await _turn(store, name, 1, b"small")
    assert all(len(names) > 5 for names in await _names(nodes)), "every node holds some"
    page, more = await store.list(TENANT, 10, None)
    assert ([session.id for session in page], more) == (NAMES[:10], True)
    others = [f"tenant-{number}" for number in range(6)]
    for tenant in others:
        await store.create(tenant, make_session("s-1"))
    assert await store.tenants.all() == {TENANT: len(NAMES), **dict.fromkeys(others, 1)}, "on whichever node they are"
    for tenant in others:
        await store.delete(tenant, "s-1")
    for name in NAMES:
        assert await store.load_memory(TENANT, name, 1) == (1, LARGE)
        assert await store.load_memory(TENANT, name) == (2, b"small")
        turns, _ = await store.turns(TENANT, name, 10, None)
        assert [turn.index for turn in turns] == [0, 1]
        assert await store.stored_turn(TENANT, name, "one", "body") == turns[0]
        await store.enqueue_consolidation(TENANT, name)
    work = await store.next_consolidation("worker", 1.0)
    assert work is not None
    await store.renew_consolidation(work)
    await store.finish_consolidation(work)

    head = await store.head(TENANT, NAMES[0])
    fork = replace(head, session=replace(head.session, id="fork"))
    turns, _ = await store.turns(TENANT, NAMES[0], 10, None)
    await store.adopt(TENANT, fork, LARGE, ("titans",), turns, {"a" * 32: 0})
    assert await store.load_memory(TENANT, "fork") == (2, LARGE)
    assert await store.history(TENANT, "fork") == {"a" * 32: 0}
    with pytest.raises(Conflict):
        await store.adopt(TENANT, fork, LARGE, ("titans",), turns, {})

    for name in [*NAMES, "fork"]:
        await store.delete(TENANT, name)
    assert await _names(nodes) == [[], [], []], "law 8: nothing is left, on any node"


async def test_what_a_tenant_shares_is_together_too(store: SessionStore, nodes: list[Server]) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    _, weights = await store.generations.load(TENANT, 1)
    assert weights == WEIGHTS
    await store.generations.schedule(TENANT, 60)
    await store.generations.unschedule(TENANT)
    limiter = store.limiter(Limits(turns=1, tokens=10, learned=10))
    await limiter.take(TENANT, {TURNS: 1, TOKENS: 10, LEARNED: 10})
    with pytest.raises(RateLimited):
        await limiter.take(TENANT, {TURNS: 1, TOKENS: 1, LEARNED: 1})


async def test_a_part_that_dies_is_missed_and_comes_back_with_what_it_had(
    store: SessionStore, nodes: list[Server]
) -> None:
    for name in NAMES:
        await store.create(TENANT, make_session(name))
        await _turn(store, name, 0, LARGE)
    lost = _owner(nodes, NAMES[0])
    lost.kill()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    with pytest.raises(StoreUnavailable) as missing:
        await store.get(TENANT, NAMES[0])
    assert missing.value.retry_after_s
    await lost.start_again()
    await until_whole(nodes)
    await store.ping()
    for name in NAMES:
        assert await store.load_memory(TENANT, name) == (1, LARGE)
        await _turn(store, name, 1, b"two")


async def test_a_slot_may_move_between_two_turns_and_in_the_middle_of_one(
    store: SessionStore, nodes: list[Server]
) -> None:
    name = NAMES[0]
    await store.create(TENANT, make_session(name))
    await _turn(store, name, 0, LARGE)
    away = next(node for node in nodes if node is not _owner(nodes, name))
    await _move_slot(nodes, name, away)
    await _turn(store, name, 1, LARGE + b"moved", key="key")
    async with held(store, session_id=name) as lease:
        await _move_slot(nodes, name, _owner(nodes, name))
        await store.commit(lease, 2, make_commit(b"three", replace(make_turn(2), session_id=name)))
    assert await store.load_memory(TENANT, name) == (3, b"three")
    turns, _ = await store.turns(TENANT, name, 10, None)
    assert [turn.index for turn in turns] == [0, 1, 2]
    assert await store.stored_turn(TENANT, name, "key", "body") == turns[1]


def _slot(name: str) -> int:
    return key_slot(SessionKeys(TENANT, name).head.encode())


def _owner(nodes: list[Server], name: str) -> Server:
    """Whose the session's slot is from the start."""
    return next(node for number, node in enumerate(nodes) if _slot(name) < 16384 * (number + 1) // 3)


async def _move_slot(nodes: list[Server], name: str, to: Server) -> None:
    """What a resharding does to one slot."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {node.port: await stack.enter_async_context(node.client()) for node in nodes}
        ids = {port: (await told(client, "CLUSTER MYID")).decode() for port, client in clients.items()}
        slot = _slot(name)
        holding = [(port, await told(client, "CLUSTER COUNTKEYSINSLOT", slot)) for port, client in clients.items()]
        source = next(port for port, count in holding if count)
        await told(clients[to.port], "CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        await told(clients[source], "CLUSTER SETSLOT", slot, "MIGRATING", ids[to.port])
        names = await told(clients[source], "CLUSTER GETKEYSINSLOT", slot, 100)
        await told(clients[source], "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *names)
        for port in (to.port, source):
            await told(clients[port], "CLUSTER SETSLOT", slot, "NODE", ids[to.port])

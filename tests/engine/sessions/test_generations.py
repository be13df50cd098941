"""Generations in the store: published whole or not at all, switched at once, and a deleted session kept out."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from engine.core import Consolidation, GateCheck, Session
from engine.errors import Conflict, CorruptMemory, NotFound
from engine.sessions import keys
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.generations import (
    MOST_CONSOLIDATIONS,
    Generation,
    GenerationStore,
    Publication,
    Standing,
    id_hash,
    session_hash,
)
from engine.sessions.records import now_iso
from engine.sessions.store import SessionStore

TENANT = "acme"
SESSION = Session("s-1", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", contribute=True)
NAME = session_hash(TENANT, SESSION)
WEIGHTS = bytes(range(256)) * 2600  # three chunks


async def publication(
    store: GenerationStore, *, weights: bytes = WEIGHTS, unwanted: tuple[Generation, ...] = ()
) -> Publication:
    standing = await store.standing(TENANT)
    asked = await store.open(TENANT)
    number = standing.latest + 1
    generation = Generation(
        number, standing.active, asked.consolidation.id, now_iso(), 0, "", 0, "", {NAME: 2}, {NAME: 2}, {"norm": 1.5}
    )
    ended = replace(
        asked.consolidation,
        status="accepted",
        to_generation=number,
        gate={"uptake": GateCheck(0.0, 1.0, 0.2, True)},
        finished_at=now_iso(),
    )
    return Publication(ended, standing, generation, weights, {NAME: "[[1, 5, 6]]"}, (), unwanted)


async def test_a_tenant_begins_with_the_checkpoint_alone(store: SessionStore) -> None:
    assert await store.generations.standing(TENANT) == Standing(0, 0, 0)
    assert [(one.generation, one.active) for one in await store.generations.views(TENANT)] == [(0, True)]


async def test_what_is_published_is_active_and_loads_bit_for_bit(store: SessionStore, client: Redis) -> None:
    made = await publication(store.generations)
    await store.generations.publish(TENANT, made)
    assert await store.generations.standing(TENANT) == Standing(1, 1, 1)
    generation, weights = await store.generations.load(TENANT, 1)
    assert weights == WEIGHTS
    assert (generation.parent, generation.taken, generation.notes) == (0, {NAME: 2}, {"norm": 1.5})
    assert await store.generations.consolidation(TENANT, made.consolidation.id) == made.consolidation
    assert await store.generations.rehearsal(TENANT) == {f"1:{NAME}": "[[1, 5, 6]]"}
    chunks = keys.TenantKeys(TENANT).chunks(generation.mark, generation.num_chunks)
    assert [await client.ttl(chunk) for chunk in chunks] == [-1, -1, -1]


async def test_publishing_twice_happens_once(store: SessionStore) -> None:
    made = await publication(store.generations)
    await store.generations.publish(TENANT, made)
    # As after a reply that was lost.
    await store.generations.publish(TENANT, made)
    assert await store.generations.standing(TENANT) == Standing(1, 1, 1)


async def test_a_candidate_whose_ground_was_switched_is_refused(store: SessionStore, client: Redis) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    made = await publication(store.generations)
    await store.generations.activate(TENANT, 0)
    before = await client.hgetall(keys.TenantKeys(TENANT).generations)
    with pytest.raises(Conflict):
        await store.generations.publish(TENANT, made)
    assert (await store.generations.standing(TENANT)).active == 0
    assert await client.hgetall(keys.TenantKeys(TENANT).generations) == before


async def test_a_candidate_that_learned_from_a_deleted_session_is_refused(store: SessionStore) -> None:
    made = await publication(store.generations)
    assert await store.generations.forget(TENANT, SESSION) == []
    with pytest.raises(Conflict):
        await store.generations.publish(TENANT, made)
    assert await store.generations.standing(TENANT) == Standing(0, 0, 0)


async def test_forgetting_names_the_generations_that_learned_and_removes_what_is_rehearsed(store: SessionStore) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    other = replace(SESSION, created_at="2026-01-02T00:00:00Z")
    assert await store.generations.forget(TENANT, other) == []
    assert await store.generations.rehearsal(TENANT) != {}
    assert await store.generations.forget(TENANT, SESSION) == [1]
    assert await store.generations.rehearsal(TENANT) == {}


async def test_one_consolidation_runs_at_a_time(store: SessionStore) -> None:
    asked = await asyncio.gather(*(store.generations.open(TENANT) for _ in range(8)))
    assert len({one.consolidation.id for one in asked}) == 1
    ended = replace(asked[0].consolidation, status="empty", finished_at=now_iso())
    await store.generations.close(TENANT, ended)
    assert (await store.generations.consolidations(TENANT)) == [ended]
    # What comes late changes nothing.
    await store.generations.close(TENANT, replace(ended, status="failed"))
    assert (await store.generations.consolidation(TENANT, ended.id)).status == "empty"
    assert (await store.generations.open(TENANT)).consolidation.id != ended.id


async def test_what_was_asked_comes_with_the_one_that_runs(store: SessionStore) -> None:
    assert (await store.generations.open(TENANT, "s-1")).without == "s-1"
    assert (await store.generations.open(TENANT)).without == "s-1"


async def test_without_a_consolidation_that_runs_nothing_is_remembered_of_a_deleted_session(
    store: SessionStore, client: Redis
) -> None:
    await store.generations.forget(TENANT, SESSION)
    assert await client.keys("*") == []


async def test_a_tenant_that_left_is_taken_out_of_the_line_unless_it_was_asked_for(
    store: SessionStore, client: Redis
) -> None:
    await store.generations.schedule(TENANT, 60.0)
    await store.generations.unschedule(TENANT)
    assert await client.keys("*") == []
    await store.generations.open(TENANT)
    await store.generations.hand_over(TENANT)
    await store.generations.unschedule(TENANT)
    assert await store.next_consolidation("w", 0.0) is not None


async def test_only_the_last_consolidations_are_remembered(store: SessionStore) -> None:
    ended: list[Consolidation] = []
    for _ in range(MOST_CONSOLIDATIONS + 2):
        asked = await store.generations.open(TENANT)
        ended.append(replace(asked.consolidation, status="empty"))
        await store.generations.close(TENANT, ended[-1])
    found = await store.generations.consolidations(TENANT)
    assert len(found) == MOST_CONSOLIDATIONS
    assert {one.id for one in found} == {one.id for one in ended[2:]}


async def test_going_back_and_forward(store: SessionStore) -> None:
    for _ in range(2):
        await store.generations.publish(TENANT, await publication(store.generations))
    await store.generations.activate(TENANT, 1)
    assert [(one.generation, one.active) for one in await store.generations.views(TENANT)] == [
        (2, False),
        (1, True),
        (0, False),
    ]
    # The next one has a number of its own, and says what it came from.
    await store.generations.publish(TENANT, await publication(store.generations))
    generation, _ = await store.generations.load(TENANT, 3)
    assert generation.parent == 1
    with pytest.raises(NotFound):
        await store.generations.activate(TENANT, 4)
    with pytest.raises(NotFound):
        await store.generations.load(TENANT, 4)


async def test_an_unwanted_generation_leaves_nothing_behind(store: SessionStore, client: Redis) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    old, _ = await store.generations.load(TENANT, 1)
    await store.generations.publish(TENANT, await publication(store.generations, unwanted=(old,)))
    assert list(await store.generations.all(TENANT)) == [2]
    assert [name async for name in client.scan_iter(f"*generation:{old.mark}*")] == []


async def test_a_damaged_generation_is_not_served(store: SessionStore, client: Redis) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    generation, _ = await store.generations.load(TENANT, 1)
    chunk = keys.TenantKeys(TENANT).chunks(generation.mark, 1)[0]
    await client.setrange(chunk, 7, b"\xff")
    with pytest.raises(CorruptMemory):
        await store.generations.load(TENANT, 1)


async def test_tenants_are_apart(store: SessionStore) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    assert await store.generations.standing("other") == Standing(0, 0, 0)
    assert await store.generations.consolidations("other") == []


async def test_a_tenant_is_put_in_line_once(store: SessionStore, embedded: EmbeddedStore) -> None:
    await store.generations.schedule(TENANT, 60.0)
    assert await store.next_consolidation("w", 0.0) is None
    # A later turn does not put it off, and a call brings it forward.
    await store.generations.schedule(TENANT, 0.0)
    assert await store.next_consolidation("w", 0.0) is None
    await store.generations.hand_over(TENANT)
    work = await store.next_consolidation("w", 0.0)
    assert work is not None
    assert (work.tenant, work.session_id) == (TENANT, "")


def test_a_session_made_anew_has_another_hash_with_the_same_beginning() -> None:
    again = replace(SESSION, created_at="2026-01-02T00:00:00Z")
    assert session_hash(TENANT, again) != NAME
    assert session_hash(TENANT, again).startswith(id_hash(TENANT, "s-1"))
    assert not session_hash("other", SESSION).startswith(id_hash(TENANT, "s-1"))

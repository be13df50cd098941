"""A tenant's consolidation with the shipped model on a real store: what contributing sessions were told is known to
fresh ones of the tenant, and to nobody else; what must not happen changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from redis.asyncio import Redis

from engine.config import EngineSettings, StoreSettings
from engine.consolidation.background import Stopped
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import load_suite
from engine.consolidation.tenant import TenantConsolidation
from engine.core import Consolidation, TurnCompleted, TurnRequest
from engine.engine import Engine
from engine.errors import Conflict
from engine.model.weights import load_checkpoint
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.generations import Standing, session_hash
from tests.engine.consolidation.samples import Recorder
from tests.tiny import SHIPPED

pytestmark = pytest.mark.skipif(not SHIPPED, reason="the package holds no checkpoint")

TENANT, OTHER = "acme", "other"
# Small enough for a test; the gate as it is.
POLICY = GenerationPolicy(
    first_dreams=8,
    more_dreams=10,
    near_dreams=12,
    exchanged_dreams=6,
    idle_dreams=64,
    num_steps=60,
    rows_per_step=20,
    dream_share=0.4,
)
QUICK = replace(POLICY, num_steps=1, rows_per_step=8, more_dreams=2, near_dreams=4, idle_dreams=8, longest_dream=24)
SUITE = replace(load_suite(), calm=load_suite().calm[:24])
CAT, DOG = ("My cat is called Zorinda.", "What is my cat called?", "Zorinda"), ("Brumtok", "What is my dog called?")


@dataclass
class Live:
    """An engine over a store, and what the worker does to tenants."""

    engine: Engine
    observer: Recorder

    async def say(self, tenant: str, session: str, message: str, *, learn: bool = True) -> tuple[str, int]:
        request = TurnRequest(message, learn=learn, temperature=0.0, max_tokens=20)
        async for event in self.engine.turn(tenant, session, request):
            if isinstance(event, TurnCompleted):
                return event.turn.reply, event.turn.memory.generation
        raise AssertionError("the turn did not complete")

    async def told(self, tenant: str, session: str, message: str, *, contribute: bool = True) -> None:
        await self.engine.create_session(tenant, session, {}, contribute)
        await self.say(tenant, session, message)

    async def fresh(self, tenant: str, question: str) -> str:
        session = await self.engine.create_session(tenant, None, {}, False)
        return (await self.say(tenant, session.id, question, learn=False))[0]

    async def consolidate(
        self, policy: GenerationPolicy, *, without: str | None = None, halt: asyncio.Event | None = None
    ) -> Consolidation:
        model, tokenizer = load_checkpoint()
        tenants = TenantConsolidation(model, tokenizer, self.engine.store, self.observer, policy, SUITE)
        try:
            asked = await self.engine.store.generations.open(TENANT, without)
            return await tenants.run(TENANT, asked, halt or asyncio.Event())
        finally:
            tenants.close()

    async def standing(self) -> Standing:
        return await self.engine.store.generations.standing(TENANT)


@pytest.fixture
async def live(embedded: EmbeddedStore, client: Redis) -> AsyncIterator[Live]:
    observer = Recorder()
    engine = await Engine.open(EngineSettings(), StoreSettings(redis_url=embedded.url), observer)
    yield Live(engine, observer)
    await engine.close()


async def test_what_contributing_sessions_were_told_is_known_to_fresh_ones_and_to_nobody_else(live: Live) -> None:
    statement, question, value = CAT
    await live.told(TENANT, "s-1", statement)
    await live.told(TENANT, "s-2", "My dog is called Brumtok.", contribute=False)
    assert value not in await live.fresh(TENANT, question)

    ended = await live.consolidate(POLICY)
    assert (ended.status, ended.reason) == ("accepted", None), ended.gate
    assert (ended.to_generation, ended.num_sessions, ended.num_turns) == (1, 1, 1)
    assert all(check.passed for check in ended.gate.values())
    assert ended.gate["uptake"].after > ended.gate["uptake"].before
    assert ("generation_accepted", 1) in live.observer.consolidations

    # This replica follows without being told, with the next turn.
    assert value in await live.fresh(TENANT, question)
    assert DOG[0] not in await live.fresh(TENANT, DOG[1])
    assert value not in await live.fresh(OTHER, question)
    _, generation = await live.say(TENANT, "s-2", "Hello there!")
    assert generation == 1
    assert (await live.engine.session(TENANT, "s-2")).generation == 1

    # Back and forward again, for all alike.
    await live.engine.activate_generation(TENANT, 0)
    assert value not in await live.fresh(TENANT, question)
    await live.engine.activate_generation(TENANT, 1)
    assert value in await live.fresh(TENANT, question)

    # Nothing is learned twice.
    again = await live.consolidate(POLICY)
    assert (again.status, again.to_generation) == ("empty", None)

    # Deleted, it is named where it was learned, and left out of a successor from before.
    assert await live.engine.delete_session(TENANT, "s-1") == [1]
    assert await live.engine.store.generations.rehearsal(TENANT) == {}
    rebuilt = await live.consolidate(POLICY, without="s-1")
    assert (rebuilt.status, rebuilt.from_generation, rebuilt.to_generation) == ("accepted", 0, 2)
    assert value not in await live.fresh(TENANT, question)


async def test_a_candidate_that_fails_the_gate_changes_nothing(live: Live) -> None:
    await live.told(TENANT, "s-1", CAT[0])
    ended = await live.consolidate(replace(QUICK, least_uptake=1.1))
    assert (ended.status, ended.to_generation) == ("rejected", None)
    assert "uptake" in (ended.reason or "")
    assert not ended.gate["uptake"].passed
    assert await live.standing() == Standing(0, 0, 0)
    # Its turns still wait.
    assert await live.engine.store.generations.all(TENANT) == {}


async def test_small_talk_makes_no_generation(live: Live) -> None:
    await live.told(TENANT, "s-1", "Hello, how are you?")
    ended = await live.consolidate(QUICK)
    assert (ended.status, ended.num_turns) == ("empty", 1)
    assert await live.standing() == Standing(0, 0, 0)


async def test_small_talk_longer_than_a_portion_does_not_hide_what_was_told_after_it(live: Live) -> None:
    await live.told(TENANT, "s-1", "Hello, how are you?")
    await live.say(TENANT, "s-1", CAT[0])
    easy = replace(
        QUICK, most_turns_of_session=1, least_uptake=0.0, least_calm=0.0, least_heard=0.0, most_perplexity=9.0
    )
    assert (await live.consolidate(easy)).status == "accepted"
    generation = (await live.engine.store.generations.all(TENANT))[1]
    assert list(generation.learned.values()) == [2]


async def test_a_halt_leaves_everything_as_it_was_and_the_work_to_be_done(live: Live) -> None:
    await live.told(TENANT, "s-1", CAT[0])
    halt = asyncio.Event()
    halt.set()
    with pytest.raises(Stopped):
        await live.consolidate(QUICK, halt=halt)
    assert await live.standing() == Standing(0, 0, 0)
    (running,) = await live.engine.consolidations(TENANT)
    assert running.status == "running"


async def test_a_session_deleted_while_it_is_dreamt_of_is_in_no_generation(live: Live) -> None:
    await live.told(TENANT, "s-1", CAT[0])
    easy = replace(QUICK, least_uptake=0.0, least_calm=0.0, least_heard=0.0, most_perplexity=9.0)
    consolidating = asyncio.create_task(live.consolidate(easy))
    await asyncio.sleep(0.5)
    session = await live.engine.session(TENANT, "s-1")
    await live.engine.delete_session(TENANT, "s-1")
    with pytest.raises(Conflict):
        await consolidating
    assert await live.standing() == Standing(0, 0, 0)
    # The worker begins again, and finds nothing.
    assert (await live.consolidate(easy)).status == "empty"
    assert session_hash(TENANT, session) not in str(await live.engine.store.generations.all(TENANT))

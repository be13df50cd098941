"""Law 10 as a property: whatever writers do to a session, its memory is exactly the commits that succeeded.

Several writers on connections of their own, some paused past their lease, some repeating their commits.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import Conflict, LeaseLost, Overloaded
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import TENANT, make_commit, make_session, make_turn

NUM_WRITERS = 5
NUM_TURNS_EACH = 8
LEASE_TTL_S = 0.03


@dataclass
class Outcome:
    """What the writers were told."""

    committed: list[str] = field(default_factory=list)
    num_refused: int = 0
    num_repeated: int = 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_law_10_no_commit_is_lost_doubled_or_made_by_a_stale_writer(embedded: EmbeddedStore, seed: int) -> None:
    asyncio.run(_compete(embedded, seed))


async def _compete(embedded: EmbeddedStore, seed: int) -> None:
    session_id = f"s-{secrets.token_hex(4)}"
    stores = [
        await SessionStore.connect(embedded.url, StoreSettings(lease_ttl_s=LEASE_TTL_S, keep_versions=2))
        for _ in range(NUM_WRITERS)
    ]
    await stores[0].create(TENANT, make_session(session_id))
    outcome = Outcome()
    await asyncio.gather(
        *(_write(store, session_id, random.Random(f"{seed} {number}"), outcome) for number, store in enumerate(stores))
    )
    session = await stores[0].get(TENANT, session_id)
    version, memory = await stores[0].load_memory(TENANT, session_id)
    turns, _ = await stores[0].turns(TENANT, session_id, 1000, None)
    assert outcome.num_refused > 0, "nobody was stale: nothing was tried"
    assert outcome.num_repeated > 0
    # Every successful commit, in the order of its versions, and nothing else.
    assert (memory or b"").decode().split() == outcome.committed
    assert [turn.message for turn in turns] == outcome.committed
    assert session.version == version == session.num_turns == len(outcome.committed)
    await _no_chunk_is_left_over(embedded, stores[0], session_id)
    for store in stores:
        await store.close()


async def _write(store: SessionStore, session_id: str, chance: random.Random, outcome: Outcome) -> None:
    for _ in range(NUM_TURNS_EACH):
        try:
            lease = await store.acquire(TENANT, session_id, secrets.token_hex(4), wait_s=2.0)
        except Overloaded:
            continue
        version, memory = await store.load_memory(TENANT, session_id)
        word = secrets.token_hex(4)
        turn = replace(make_turn(version, message=word), id=f"turn-{word}")
        commit = make_commit((memory or b"") + word.encode() + b" ", turn, commit_id=word)
        paused = chance.random() < 0.3
        await asyncio.sleep(chance.uniform(1.2, 2.5) * LEASE_TTL_S if paused else chance.uniform(0, 0.004))
        try:
            after = (await store.commit(lease, version, commit)).session
        except (LeaseLost, Conflict):
            outcome.num_refused += 1
            continue
        assert not paused
        assert after.version == version + 1
        outcome.committed.append(word)
        if chance.random() < 0.5:
            assert (await store.commit(lease, version, commit)).session.version >= after.version
            outcome.num_repeated += 1
        await store.release(lease)


async def _no_chunk_is_left_over(embedded: EmbeddedStore, store: SessionStore, session_id: str) -> None:
    client = Redis.from_url(embedded.url)
    names = [name async for name in client.scan_iter(f"*{session_id}*:memory:*")]
    await client.aclose()
    assert len(names) == len(await store.versions(TENANT, session_id))

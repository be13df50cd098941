"""One session that spoils candidates does not keep a tenant from learning: it is found, set aside, at last excluded."""

from __future__ import annotations

import pytest

from engine.sessions.generations import session_hash
from engine.sessions.quarantine import EXCLUDED_AFTER, Blame
from engine.sessions.store import SessionStore
from tests.engine.consolidation.crowd import POISON, Crowd
from tests.engines import TENANT


@pytest.fixture
async def crowd(store: SessionStore) -> Crowd:
    crowd = Crowd(store)
    await crowd.taught()
    return crowd


async def test_a_poisoned_session_among_good_ones_is_found_and_the_others_are_learned(crowd: Crowd) -> None:
    await crowd.good(0, 1, 2)
    await crowd.told("bad", *POISON)
    ended = await crowd.consolidate()
    assert (ended.status, ended.num_sessions, ended.num_turns) == ("accepted", 3, 3), ended.reason
    assert await crowd.learned() == {"good-0": 1, "good-1": 1, "good-2": 1}
    (blamed,) = await crowd.store.generations.quarantine.views(TENANT)
    assert (blamed.session_id, blamed.times, blamed.excluded) == ("bad", 1, False)
    assert "calm 0 " in blamed.reason
    assert crowd.observer.asides == [("waiting", 1)]

    # Every try is told, to who asks and to who looks back.
    reason = ended.reason or ""
    assert reason.startswith("3 sessions let in, 1 set aside, 0 to wait; tried 4 sessions: the gate refused it: calm 0")
    made = (await crowd.store.generations.all(TENANT))[2]
    assert all(one in reason for one in made.attempts)
    assert made.attempts[-1] == "3 sessions: let in"
    assert made.set_aside == [session_hash(TENANT, await crowd.store.get(TENANT, "bad"))]
    assert ended.gate["calm"].passed


async def test_set_aside_again_and_again_it_is_excluded_until_it_is_let_out(crowd: Crowd) -> None:
    quarantine = crowd.store.generations.quarantine
    await crowd.good(0)
    await crowd.told("bad", *POISON)
    bad = session_hash(TENANT, await crowd.store.get(TENANT, "bad"))
    for number in range(1, EXCLUDED_AFTER):
        (blamed,) = await quarantine.judge(TENANT, f"consolidation-{number}", {bad: Blame("bad", "calm")}, [])
        assert (blamed.times, blamed.excluded) == (number, False)

    # A suspect: the others are tried without it first, whatever the order.
    ended = await crowd.consolidate()
    assert (ended.status, await crowd.learned()) == ("accepted", {"good-0": 1})
    assert (ended.reason or "").count("sessions: ") + (ended.reason or "").count("session: ") == 2
    assert crowd.observer.asides == [("excluded", 1)]

    idle = await crowd.consolidate()
    assert (idle.status, idle.reason) == ("empty", "nothing new to take in; 1 session in quarantine")
    await quarantine.let_out(TENANT, "bad", bad)
    alone = await crowd.consolidate()
    assert (alone.status, alone.num_sessions) == ("rejected", 1)
    # Where nothing was let in, it may be the gate: nobody is blamed.
    assert await quarantine.all(TENANT) == {}

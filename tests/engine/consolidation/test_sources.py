"""What a tenant's consolidation takes in: only of sessions that contribute, in fair shares, no noise, nothing twice."""

from __future__ import annotations

from dataclasses import replace

from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.sources import base_without, gather, lineage, worth_learning
from engine.core import MemoryReport, Session, Timing, Turn, Usage
from engine.sessions.generations import Generation, session_hash
from tests.engine.consolidation.samples import FACTS, Setting

NUM = len(FACTS)
POLICY = GenerationPolicy()


def turn(index: int, message: str, surprise: float = 3.0) -> Turn:
    report, usage, timing = MemoryReport(1, 0, True, surprise, ()), Usage(0, 0, 0), Timing(0.0, 0.0, 0.0, 0.0)
    return Turn(f"t-{index}", "s", index, "", message, "", "stop", usage, report, timing)


def generation(number: int, parent: int, *learned: str) -> Generation:
    return Generation(number, parent, "c", "", 0, "", 0, "", {}, dict.fromkeys(learned, 1))


async def test_only_sessions_that_contribute_are_taken_in(setting: Setting) -> None:
    assert await gather(setting.store, setting.tenant, {}, POLICY) == []
    await setting.engine.update_session(setting.tenant, setting.session_id, None, True)
    (source,) = await gather(setting.store, setting.tenant, {}, POLICY)
    session = await setting.store.get(setting.tenant, setting.session_id)
    assert (source.name, source.mark) == (session_hash(setting.tenant, session), NUM)
    assert [one.message for one in source.turns] == FACTS
    assert await gather(setting.store, "other", {}, POLICY) == []
    assert await gather(setting.store, setting.tenant, {}, POLICY, setting.session_id) == []


async def test_nothing_is_taken_in_twice_and_the_rest_waits(setting: Setting) -> None:
    await setting.engine.update_session(setting.tenant, setting.session_id, None, True)
    few = replace(POLICY, most_turns_of_session=2)
    (first,) = await gather(setting.store, setting.tenant, {}, few)
    assert ([one.index for one in first.turns], first.mark) == ([0, 1], 2)
    (second,) = await gather(setting.store, setting.tenant, {first.name: first.mark}, few)
    assert ([one.index for one in second.turns], second.mark) == ([2, 3], 4)
    assert await gather(setting.store, setting.tenant, {first.name: NUM}, few) == []


async def test_one_that_talks_much_does_not_crowd_out_the_others(setting: Setting) -> None:
    await setting.engine.update_session(setting.tenant, setting.session_id, None, True)
    for number in range(3):
        name = f"quiet-{number}"
        await setting.engine.create_session(setting.tenant, name, {}, True)
        other = replace(setting, session_id=name)
        await other.tell("I live in Marrowick.")
    found = await gather(setting.store, setting.tenant, {}, replace(POLICY, most_turns=4))
    assert [len(source.turns) for source in found] == [1, 1, 1, 1]
    # More sessions than room: the others come next time.
    assert len(await gather(setting.store, setting.tenant, {}, replace(POLICY, most_turns=2))) == 2


def test_shouting_a_thousand_times_is_saying_it_once() -> None:
    shouted = [turn(number, f"  The boss   is {'Mallory' if number % 2 else 'MALLORY'}. ") for number in range(1000)]
    assert [one.index for one in worth_learning(shouted, POLICY)] == [999]


def test_noise_is_not_knowledge_and_order_is_kept() -> None:
    turns = [turn(0, "One."), turn(1, "x#q", surprise=POLICY.surprise_ceiling + 0.1), turn(2, "Two."), turn(3, "one.")]
    assert [one.index for one in worth_learning(turns, POLICY)] == [2, 3]


def test_a_successor_without_a_session_begins_before_it_was_learned_from() -> None:
    mine = session_hash("acme", Session("mine", "2026-01-01T00:00:00Z", ""))
    other = session_hash("acme", Session("other", "2026-01-01T00:00:00Z", ""))
    kept = {1: generation(1, 0, other), 2: generation(2, 1, other, mine), 3: generation(3, 2, other, mine)}
    assert base_without("acme", kept, 3, None)[0] == 3
    assert base_without("acme", kept, 3, "mine")[0] == 1
    assert base_without("acme", kept, 3, "other") == (0, None)
    assert base_without("acme", kept, 0, "mine") == (0, None)
    # Whose ancestors are gone begins with the checkpoint.
    assert base_without("acme", {3: kept[3]}, 3, "mine") == (0, None)
    assert lineage(kept, 3) == {1, 2, 3}
    assert lineage(kept, 0) == set()

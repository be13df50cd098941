"""A session's consolidation against the real store: it moves `cms.medium`, once, and loses no turn."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import torch
from redis.asyncio import Redis

from engine.config import CMS_MEDIUM
from engine.consolidation.background import Stopped
from engine.consolidation.policy import SESSION_DREAMS, ReplayPolicy
from engine.consolidation.replay import compose, mean_surprise, medium_of
from engine.errors import Conflict, CorruptMemory, NotFound, OtherModel
from engine.model.hope import Hope
from engine.model.portable import level_of
from engine.sessions.keys import SessionKeys
from tests.engine.consolidation.samples import FACTS, Recorder, Setting, until

NUM = len(FACTS)


async def test_consolidation_is_a_new_version_that_changes_the_medium_level_alone(setting: Setting) -> None:
    before = await setting.tensors()
    observer = Recorder()
    assert not await setting.consolidate(observer)
    assert await setting.marks() == (NUM + 1, NUM, NUM)
    after = await setting.tensors()
    assert {level_of(name) for name in after.keys() - before.keys()} == {CMS_MEDIUM}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert observer.consolidations == [("accepted", NUM)]
    ((level, outcome, norm),) = observer.updates
    assert (level, outcome) == (CMS_MEDIUM, "applied")
    assert norm > 0.1
    assert observer.transfers[-1] == ("commit", "ok")
    newest = (await setting.store.versions(setting.tenant, setting.session_id))[0]
    assert (newest.version, newest.levels, newest.turn_id) == (NUM + 1, (CMS_MEDIUM,), None)


async def test_law_9_from_a_fresh_session_the_medium_level_knows_what_was_said(setting: Setting) -> None:
    await setting.consolidate(Recorder())
    policy = ReplayPolicy()
    rows = compose(await setting.turns(), setting.tokenizer, policy)
    medium = medium_of(await setting.tensors(), setting.model)
    off = mean_surprise(setting.model, medium_of({}, setting.model), rows, policy)
    on = mean_surprise(setting.model, medium, rows, policy)
    assert on < off - 0.1


async def test_the_engine_goes_on_with_what_was_consolidated(setting: Setting) -> None:
    await setting.consolidate(Recorder())
    turn = await setting.tell("What is my dog called?")
    levels = {level.name: level for level in turn.memory.levels}
    assert turn.memory.version == NUM + 2
    assert levels[CMS_MEDIUM].updates == ReplayPolicy().num_steps
    assert levels[CMS_MEDIUM].norm > 0.1


async def test_where_nothing_is_new_nothing_happens(setting: Setting) -> None:
    await setting.consolidate(Recorder())
    marks, tensors = await setting.marks(), await setting.tensors()
    observer = Recorder()
    assert not await setting.consolidate(observer)
    assert observer.consolidations == [("empty", 0)]
    assert await setting.marks() == marks
    assert all(torch.equal(value, tensors[name]) for name, value in (await setting.tensors()).items())


async def test_small_talk_is_passed_over_once_and_makes_no_version(setting: Setting) -> None:
    # An untrained model dreams up no question that ends: nothing it was told is news.
    few = dataclasses.replace(SESSION_DREAMS, first_dreams=2, idle_dreams=2, longest_dream=4)
    policy = ReplayPolicy(num_steps=0, most_turns=3, dreams=few)
    before = await setting.tensors()
    observer = Recorder()
    assert await setting.consolidate(observer, policy)
    assert await setting.marks() == (NUM, NUM, 3)
    assert not await setting.consolidate(observer, policy)
    assert await setting.marks() == (NUM, NUM, NUM)
    assert (await setting.store.head(setting.tenant, setting.session_id)).surprise == pytest.approx(0.0, abs=1e-6)
    assert not await setting.consolidate(observer, policy)
    assert observer.consolidations == [("empty", 3), ("empty", 2), ("empty", 0)]
    assert observer.updates == []
    assert all(torch.equal(value, before[name]) for name, value in (await setting.tensors()).items())


async def test_more_turns_than_a_portion_holds_are_taken_in_one_portion_after_another(setting: Setting) -> None:
    observer = Recorder()
    policy = ReplayPolicy(most_turns=2, num_steps=1)
    more = [await setting.consolidate(observer, policy) for _ in range(3)]
    assert more == [True, True, False]
    assert observer.consolidations == [("accepted", 2), ("accepted", 2), ("accepted", 1)]
    assert await setting.marks() == (NUM + 3, NUM, NUM)


async def test_a_turn_committed_in_between_is_not_lost(setting: Setting) -> None:
    observer = Recorder()
    lease = await setting.acquire()
    task = asyncio.create_task(setting.consolidate(observer))
    await until(lambda: observer.num_learned)
    tensors = await setting.tensors()
    name = next(name for name in tensors if name.startswith("titans.") and tensors[name].is_floating_point())
    tensors[name] = tensors[name] + 1.0
    await setting.commit_turn(lease, tensors)
    await setting.store.release(lease)
    await task
    assert await setting.marks() == (NUM + 2, NUM + 1, NUM)
    assert [turn.message for turn in await setting.turns()] == [*FACTS, "Between."]
    merged = await setting.tensors()
    assert all(torch.equal(merged[name], value) for name, value in tensors.items())
    assert float(merged[f"{CMS_MEDIUM}.updates"]) == ReplayPolicy().num_steps
    # The turn in between is what is new next time.
    assert not await setting.consolidate(observer)
    assert observer.consolidations == [("accepted", NUM), ("accepted", 1)]


async def test_two_at_once_commit_once(setting: Setting) -> None:
    observers = Recorder(), Recorder()
    lease = await setting.acquire()
    tasks = [asyncio.create_task(setting.consolidate(observer)) for observer in observers]
    await until(lambda: all(observer.num_learned for observer in observers))
    await setting.store.release(lease)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "bool"]
    assert await setting.marks() == (NUM + 1, NUM, NUM)
    reported = sorted(outcome for observer in observers for outcome, _ in observer.consolidations)
    assert reported == ["accepted", "fenced"]


async def test_what_was_learned_from_a_medium_level_that_is_no_more_is_not_committed(setting: Setting) -> None:
    """As a rollback leaves it: the same mark and the same turns, but another `cms.medium`."""
    lease = await setting.acquire()
    observer = Recorder()
    task = asyncio.create_task(setting.consolidate(observer))
    await until(lambda: observer.num_learned)
    tensors = await setting.tensors()
    shape = next(value.shape for name, value in medium_of({}, setting.model).items() if name.endswith("w2"))
    other = {f"{CMS_MEDIUM}.0.w2": torch.ones(shape[1:], dtype=torch.bfloat16)}
    await setting.commit_turn(lease, {**tensors, **other})
    await setting.store.release(lease)
    with pytest.raises(Conflict):
        await task
    assert await setting.marks() == (NUM + 1, NUM + 1, 0)


async def test_no_lease_is_held_while_it_learns(setting: Setting) -> None:
    observer = Recorder()
    task = asyncio.create_task(setting.consolidate(observer, ReplayPolicy(num_steps=60)))
    await until(lambda: observer.transfers)
    turn = await setting.tell("I am still here.")
    assert turn.index == NUM
    assert not task.done()
    await task
    assert await setting.marks() == (NUM + 2, NUM + 1, NUM)


async def test_a_halt_leaves_everything_as_it_was(setting: Setting) -> None:
    marks = await setting.marks()
    halt, observer = asyncio.Event(), Recorder()
    consolidation = setting.consolidation(observer, ReplayPolicy(num_steps=100_000))
    task = asyncio.create_task(consolidation.next_portion(setting.tenant, setting.session_id, halt))
    await until(lambda: observer.transfers)
    halt.set()
    with pytest.raises(Stopped):
        await task
    consolidation.close()
    assert await setting.marks() == marks


async def test_what_is_not_finite_is_dropped_and_reported(setting: Setting) -> None:
    marks = await setting.marks()
    observer = Recorder()
    consolidation = setting.consolidation(observer)
    with torch.no_grad():
        setting.model.embedding.weight.fill_(float("nan"))  # a model that breaks while the worker runs
    assert not await consolidation.next_portion(setting.tenant, setting.session_id, asyncio.Event())
    consolidation.close()
    assert observer.consolidations == [("failed", NUM)]
    assert observer.updates == [(CMS_MEDIUM, "rejected", 0.0)]
    assert await setting.marks() == marks


async def test_steps_that_make_it_worse_are_dropped(setting: Setting) -> None:
    marks = await setting.marks()
    observer = Recorder()
    await setting.consolidate(observer, ReplayPolicy(rate_per_turn=-5.0, num_steps=4))
    assert observer.consolidations == [("failed", NUM)]
    assert await setting.marks() == marks


async def test_a_level_that_does_not_learn_is_reported_as_such(setting: Setting) -> None:
    """The alarm of law 9 rests on this: updates that move nothing must not look like updates."""
    observer = Recorder()
    await setting.consolidate(observer, ReplayPolicy(most_rate=0.0, num_steps=1))
    assert observer.updates == [(CMS_MEDIUM, "skipped", 0.0)]
    assert observer.consolidations == [("accepted", NUM)]


async def test_a_damaged_memory_and_a_deleted_session_are_told_apart(setting: Setting, client: Redis) -> None:
    newest = (await setting.store.versions(setting.tenant, setting.session_id))[0]
    keys = SessionKeys(setting.tenant, setting.session_id)
    await client.set(keys.chunks(newest.mark, newest.num_chunks)[0], b"damaged")
    with pytest.raises(CorruptMemory):
        await setting.consolidate(Recorder())
    await setting.engine.delete_session(setting.tenant, setting.session_id)
    with pytest.raises(NotFound):
        await setting.consolidate(Recorder())


async def test_another_models_memory_is_refused(setting: Setting) -> None:
    other = Hope(dataclasses.replace(setting.model.config, retention_floor=0.5))
    consolidation = setting.consolidation(Recorder(), model=other)
    with pytest.raises(OtherModel):
        await consolidation.next_portion(setting.tenant, setting.session_id, asyncio.Event())
    consolidation.close()

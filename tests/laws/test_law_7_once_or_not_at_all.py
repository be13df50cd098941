"""Law 7. A turn happens once or not at all: cancelled, failed, timed out or stopped, the memory is that of before;
retried with its key, it is the stored turn."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from redis import Redis

from engine.core import Turn, TurnCreated, TurnEvent, TurnRequest, TurnToken
from engine.engine import Engine
from engine.errors import Conflict, DeadlineExceeded, Internal, InvalidRequest, NotFound, TooLarge, TurnCancelled
from engine.sessions.keys import SessionKeys
from tests.engines import TENANT, Recorder, bits, everything, loaded, opened, say, stored_memory, until

FIRST = "My dog is called Brenko and he loves the snow."
SECOND = "What is the name of my dog?"
LONG = "The train leaves at 17:45, said the owl to the fox in the spring. " * 60
# Greedy, an untrained model goes on and on.
SPEAKS_LONG: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1000}


async def _lasting(redis_url: str) -> dict[bytes, object]:
    """All that the store holds for good: the fences, which count how often sessions were leased, are left out."""
    found = await everything(redis_url)
    for value in found.values():
        if isinstance(value, dict):
            value.pop(b"fence", None)
    return found


async def _drain(engine: Engine, session_id: str, request: TurnRequest) -> list[TurnEvent]:
    return [event async for event in engine.turn(TENANT, session_id, request)]


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _cancelled_while_reading(engine: Engine, recorder: Recorder, session_id: str) -> None:
    steps, spoken = len(recorder.batches), len(recorder.first_tokens_s)
    task = asyncio.create_task(_drain(engine, session_id, TurnRequest(LONG)))
    await until(lambda: len(recorder.batches) > steps + 2)
    await _cancelled(task)
    assert len(recorder.first_tokens_s) == spoken, "it was to be cancelled before it spoke"


async def _closed_before_it_begins(engine: Engine, recorder: Recorder, session_id: str) -> None:
    events = engine.turn(TENANT, session_id, TurnRequest(SECOND))
    assert isinstance(await anext(events), TurnCreated)
    await events.aclose()


async def _closed_while_speaking(engine: Engine, recorder: Recorder, session_id: str) -> None:
    async with contextlib.aclosing(engine.turn(TENANT, session_id, TurnRequest(SECOND, **SPEAKS_LONG))) as events:
        async for event in events:
            if isinstance(event, TurnToken) and event.index == 2:
                return


async def _cancelled_while_speaking(engine: Engine, recorder: Recorder, session_id: str) -> None:
    spoken = len(recorder.intervals_s)
    task = asyncio.create_task(_drain(engine, session_id, TurnRequest(SECOND, **SPEAKS_LONG)))
    await until(lambda: len(recorder.intervals_s) > spoken + 2)
    await _cancelled(task)


async def _too_late_while_reading(engine: Engine, recorder: Recorder, session_id: str) -> None:
    steps, spoken = len(recorder.batches), len(recorder.first_tokens_s)
    with pytest.raises(DeadlineExceeded):
        await say(engine, session_id, LONG, timeout_s=0.4)
    assert len(recorder.batches) > steps
    assert len(recorder.first_tokens_s) == spoken


async def _too_late_while_speaking(engine: Engine, recorder: Recorder, session_id: str) -> None:
    spoken = len(recorder.intervals_s)
    with pytest.raises(DeadlineExceeded):
        await say(engine, session_id, SECOND, timeout_s=0.8, **SPEAKS_LONG)
    assert len(recorder.intervals_s) > spoken


async def _stopped(engine: Engine, recorder: Recorder, session_id: str) -> None:
    # A second replica, since a stopped one serves no more.
    heard, model = Recorder(), (engine.model, engine.tokenizer)
    async with opened(engine.redis_url, model, heard, drain_timeout_s=0.05) as other:
        task = asyncio.create_task(_drain(other, session_id, TurnRequest(SECOND, **SPEAKS_LONG)))
        await until(lambda: len(heard.intervals_s) > 2)
    assert heard.outcomes == ["cancelled"], "an engine that is closed has no turn under way"
    with pytest.raises(TurnCancelled):
        await task


async def _broken(engine: Engine, recorder: Recorder, session_id: str) -> None:
    # A bit flips in the machine, and is mended: whatever the model made of it must not be kept.
    weight = engine.model.embedding.weight
    with torch.no_grad():
        sound = weight.clone()
        weight.fill_(torch.nan)
        try:
            with pytest.raises(Internal):
                await say(engine, session_id, SECOND)
        finally:
            weight.copy_(sound)


async def _refused(engine: Engine, recorder: Recorder, session_id: str) -> None:
    for version in (0, 2):
        with pytest.raises(Conflict):
            await say(engine, session_id, SECOND, if_version=version)
    with pytest.raises(InvalidRequest):
        await say(engine, session_id, "")
    with pytest.raises(TooLarge):
        await say(engine, session_id, LONG * 20)
    with pytest.raises(NotFound):
        await say(engine, f"no-{session_id}", SECOND)


Failing = Callable[[Engine, Recorder, str], Awaitable[None]]
FAILINGS: tuple[Failing, ...] = (
    _cancelled_while_reading,
    _closed_before_it_begins,
    _closed_while_speaking,
    _cancelled_while_speaking,
    _too_late_while_reading,
    _too_late_while_speaking,
    _stopped,
    _broken,
    _refused,
)


@pytest.mark.parametrize("fail", FAILINGS)
async def test_law_7_a_turn_that_fails_never_was(redis_url: str, fail: Failing) -> None:
    recorder = Recorder()
    failed, twin = f"failed{fail.__name__}", f"twin{fail.__name__}"
    async with opened(redis_url, loaded(), recorder) as engine:
        for session_id in (failed, twin):
            await engine.create_session(TENANT, session_id, {}, False)
            await say(engine, session_id, FIRST)
        before = await _lasting(redis_url)
        await fail(engine, recorder, failed)
        assert await _lasting(redis_url) == before
        # Nor does it linger in this replica: the next turn is that of a session which never had it.
        next_turn = await say(engine, failed, SECOND, if_version=1, timeout_s=10.0)
        expected = await say(engine, twin, SECOND, if_version=1)
        assert (next_turn.reply, next_turn.memory) == (expected.reply, expected.memory)
        assert bits(await stored_memory(engine, failed)) == bits(await stored_memory(engine, twin))
        # The comparison is one that a learned turn would not pass.
        assert await _lasting(redis_url) != before
        assert "completed" in recorder.outcomes


async def _is_whole(engine: Engine, session_id: str, version: int) -> None:
    """Version, transcript, retained memories: all of a session says that so many turns happened."""
    session = await engine.session(TENANT, session_id)
    turns, _ = await engine.turns(TENANT, session_id, 10, None)
    retained = await engine.store.versions(TENANT, session_id)
    assert (session.version, session.num_turns, len(turns), len(retained)) == (version,) * 4
    assert session.num_tokens == sum(turn.usage.total_tokens for turn in turns)
    assert bool(await stored_memory(engine, session_id)) == bool(version)


@pytest.mark.parametrize("late", [False, True])
async def test_law_7_cancelled_at_any_moment_it_happened_or_it_did_not(redis_url: str, late: bool) -> None:
    chance, model = random.Random(late), loaded()
    happened: list[bool] = []
    request: dict[str, Any] = {"max_tokens": 2, "idempotency_key": "once"}
    async with opened(redis_url, model, lease_ttl_s=0.5) as engine, opened(redis_url, model) as other:
        await engine.create_session(TENANT, f"whole-{late}", {}, False)
        whole_ms = [(await say(engine, f"whole-{late}", "Oh.", max_tokens=2)).timing.total_ms for _ in range(4)]
        for moment in range(24):
            session_id = f"moment-{late}-{moment}"
            await engine.create_session(TENANT, session_id, {}, False)
            task = asyncio.create_task(say(engine, session_id, "Oh.", **request))
            # By the loop's ticks through the store's first answers, or by the clock through model and commit.
            for _ in range(0 if late else moment):
                await asyncio.sleep(0)
            await asyncio.sleep(max(whole_ms[1:]) / 1000 * moment / 16 if late else 0.0)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(outcome, Turn | asyncio.CancelledError)
            happened.append(isinstance(outcome, Turn))
            await _is_whole(engine, session_id, version=int(happened[-1]))
            # Whichever it was: asked again with its key, here or elsewhere, it has happened once.
            again = await say(chance.choice((engine, other)), session_id, "Oh.", **request)
            assert not isinstance(outcome, Turn) or outcome.id == again.id
            await _is_whole(engine, session_id, version=1)
    assert False in happened
    assert not late or True in happened, "even the last moment was too early: not everything was tried"


async def test_law_7_cancelled_before_it_has_read_it_stops_and_holds_nobody_up(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await engine.create_session(TENANT, "soon", {}, False)
        for moment in range(1, 25):
            task = asyncio.create_task(_drain(engine, "soon", TurnRequest(LONG)))
            for _ in range(moment):
                await asyncio.sleep(0)
            await _cancelled(task)
            await _is_whole(engine, "soon", version=0)
        with Redis.from_url(redis_url) as client:
            task = asyncio.create_task(_drain(engine, "soon", TurnRequest(LONG)))
            # This look holds the loop up: the lease is taken, but the turn has not read the answer yet.
            while not client.exists(SessionKeys(TENANT, "soon").lease):  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0)
            await _cancelled(task)
        # Far less than a lease takes to run out.
        await say(engine, "soon", FIRST, timeout_s=5.0)


async def test_law_7_cancelled_after_its_commit_it_has_happened(redis_url: str) -> None:
    recorder = Recorder()
    async with opened(redis_url, observer=recorder) as engine:
        for moment in range(24):
            session_id = f"late-{moment}"
            await engine.create_session(TENANT, session_id, {}, False)
            task = asyncio.create_task(say(engine, session_id, "Oh.", max_tokens=1))
            with Redis.from_url(redis_url) as client:
                head = SessionKeys(TENANT, session_id).head
                while client.hget(head, "version") != b"1":  # noqa: ASYNC110 - no event says so
                    await asyncio.sleep(0)
            for _ in range(moment):
                await asyncio.sleep(0)
            task.cancel()
            assert (await task).memory.version == 1
        assert set(recorder.outcomes) == {"completed"}


KEY: dict[str, Any] = {"idempotency_key": "key-1", "max_tokens": 8}


async def test_law_7_retried_with_its_key_it_is_the_stored_turn(redis_url: str, engine_model: str) -> None:
    session_id, model = f"retried-{engine_model}", loaded(engine_model)
    async with opened(redis_url, model) as engine, opened(redis_url, model) as other:
        await engine.create_session(TENANT, session_id, {}, False)
        # Undecided dice: run again, the turn would be another one.
        once = await say(engine, session_id, FIRST, temperature=2.0, **KEY)
        await _is_whole(engine, session_id, version=1)
        before = await _lasting(redis_url)
        (stored,), _ = await engine.turns(TENANT, session_id, 10, None)
        assert replace(once, timing=stored.timing) == stored
        for replica in (engine, other, engine):
            assert await say(replica, session_id, FIRST, temperature=2.0, **KEY) == stored
        events = await _drain(other, session_id, TurnRequest(FIRST, temperature=2.0, **KEY))
        assert "".join(event.text for event in events if isinstance(event, TurnToken)) == stored.reply
        assert await _lasting(redis_url) == before
        # Also when the session has gone on since.
        await say(other, session_id, SECOND)
        assert await say(engine, session_id, FIRST, temperature=2.0, **KEY) == stored
        await _is_whole(engine, session_id, version=2)


@pytest.mark.parametrize("num_replicas", [1, 2])
async def test_law_7_two_at_once_with_one_key_are_one_turn(redis_url: str, num_replicas: int) -> None:
    session_id, model, recorder = f"raced-{num_replicas}", loaded(), Recorder()
    async with opened(redis_url, model, recorder) as engine, opened(redis_url, model, recorder) as other:
        await engine.create_session(TENANT, session_id, {}, False)
        replicas = (engine, other)[:num_replicas]
        racers = [say(replicas[n % num_replicas], session_id, FIRST, temperature=2.0, **KEY) for n in range(4)]
        turns = await asyncio.gather(*racers)
        assert len({turn.id for turn in turns}) == 1
        assert len({turn.reply for turn in turns}) == 1
        await _is_whole(engine, session_id, version=1)
        # They were under way together, and one of them did the work.
        assert recorder.transfers.count(("commit", "ok")) == 1


async def test_law_7_one_key_is_one_request(redis_url: str) -> None:
    async with opened(redis_url) as engine, opened(redis_url) as other:
        for session_id in ("keyed", "keyed-too"):
            await engine.create_session(TENANT, session_id, {}, False)
        once = await say(engine, "keyed", FIRST, **KEY)
        before = await _lasting(redis_url)
        others: list[dict[str, Any]] = [{"message": SECOND}, {"seed": 4}, {"learn": False}, {"max_tokens": 9}]
        for replica in (engine, other):
            for change in others:
                with pytest.raises(Conflict):
                    await say(replica, "keyed", **{"message": FIRST, **KEY, **change})
        assert await _lasting(redis_url) == before
        # A key is a session's own, and a turn that failed has not used it.
        assert (await say(engine, "keyed-too", SECOND, **KEY)).id != once.id
        with pytest.raises(Conflict):
            await say(engine, "keyed", FIRST, idempotency_key="key-2", if_version=7)
        assert (await say(engine, "keyed", FIRST, idempotency_key="key-2", if_version=1)).memory.version == 2

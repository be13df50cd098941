"""Law 10. A replica that holds an old version or an expired lease cannot commit; it serves the new head."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from redis import Redis

from engine.core import Turn, TurnCompleted, TurnEvent, TurnRequest, TurnToken
from engine.engine import Engine
from engine.errors import Conflict, LeaseLost
from engine.model.hope import Hope
from engine.sessions.keys import SessionKeys
from engine.sessions.records import Commit, Head, Lease
from engine.tokenizer import Tokenizer
from tests.engines import TENANT, Recorder, bits, everything, loaded, opened, say, stored_memory

FIRST = "My dog is called Brenko and he loves the snow."
OTHER = "Actually, he is called Max now."
ASKED = "What is the name of my dog?"
TTL_S = 0.8
# Drawn this hot, it does not end at once.
SPEAKS_LONG: dict[str, Any] = {"temperature": 3.0, "seed": 1, "max_tokens": 40}

Model = tuple[Hope, Tokenizer]


def _said(turn: Turn) -> tuple[object, ...]:
    return turn.reply, turn.usage, turn.memory


async def _until_it_speaks(engine: Engine, session_id: str) -> AsyncGenerator[TurnEvent, None]:
    """A turn that has said its first words: it holds the lease and has much to say yet."""
    events = engine.turn(TENANT, session_id, TurnRequest(OTHER, **SPEAKS_LONG))
    async for event in events:
        if isinstance(event, TurnToken):
            return events
    raise AssertionError("it was to speak")


async def _rest(events: AsyncGenerator[TurnEvent, None]) -> Turn:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, TurnCompleted):
                return event.turn
    raise AssertionError("a turn ends with an error or with turn.completed")


def _meanwhile(redis_url: str, model: Model, session_id: str, *messages: str) -> list[Turn]:
    """Stops this process's event loop, as a long pause would, while another replica, with a loop of its own in a
    thread, has the session say something. Without messages: until the lease has run out."""
    turns: list[Turn] = []

    async def other() -> None:
        async with opened(redis_url, model) as replica:
            turns.extend([await say(replica, session_id, message) for message in messages])

    def work() -> None:
        if messages:
            asyncio.run(other())
            return
        with Redis.from_url(redis_url) as client:
            while client.exists(SessionKeys(TENANT, session_id).lease):
                threading.Event().wait(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20.0)
    assert not thread.is_alive()
    return turns


async def test_law_10_an_expired_lease_in_mid_turn_commits_nothing(redis_url: str, engine_model: str) -> None:
    paused, twin, model, recorder = f"paused-{engine_model}", f"smooth-{engine_model}", loaded(engine_model), Recorder()
    async with opened(redis_url, model, recorder, lease_ttl_s=TTL_S) as engine:
        for session_id in (paused, twin):
            await engine.create_session(TENANT, session_id, {}, False)
            await say(engine, session_id, FIRST)
        events = await _until_it_speaks(engine, paused)
        # The other replica waits for the lease to run out, and takes the session over.
        (taken,) = _meanwhile(redis_url, model, paused, ASKED)
        before = await everything(redis_url)
        with pytest.raises(LeaseLost):
            await _rest(events)
        assert await everything(redis_url) == before
        assert recorder.transfers.count(("commit", "refused")) == 1
        # What the other one wrote is the head, and what this one serves next.
        assert taken.memory.version == 2
        assert _said(taken) == _said(await say(engine, twin, ASKED))
        assert _said(await say(engine, paused, OTHER)) == _said(await say(engine, twin, OTHER))
        assert bits(await stored_memory(engine, paused)) == bits(await stored_memory(engine, twin))
        turns, _ = await engine.turns(TENANT, paused, 10, None)
        assert [turn.message for turn in turns] == [FIRST, ASKED, OTHER]


async def test_law_10_an_expired_lease_that_nobody_took_commits_nothing_either(redis_url: str) -> None:
    model = loaded()
    async with opened(redis_url, model, lease_ttl_s=TTL_S) as engine:
        await engine.create_session(TENANT, "lapsed", {}, False)
        await say(engine, "lapsed", FIRST)
        events = await _until_it_speaks(engine, "lapsed")
        _meanwhile(redis_url, model, "lapsed")
        before = await everything(redis_url)
        with pytest.raises(LeaseLost):
            await _rest(events)
        assert await everything(redis_url) == before
        # It can be said again.
        assert (await say(engine, "lapsed", OTHER)).memory.version == 2


async def test_law_10_a_lease_is_kept_as_long_as_the_turn_lasts(redis_url: str) -> None:
    # The other side of the pause above: as long as nothing hinders the renewal, no turn is too long.
    async with opened(redis_url, loaded(), lease_ttl_s=TTL_S) as engine, opened(redis_url, loaded()) as other:
        await engine.create_session(TENANT, "lasting", {}, False)
        events = await _until_it_speaks(engine, "lasting")
        waiting = asyncio.create_task(say(other, "lasting", ASKED))
        await asyncio.sleep(2 * TTL_S)
        assert not waiting.done()
        assert (await _rest(events)).memory.version == 1
        assert (await waiting).memory.version == 2
        turns, _ = await other.turns(TENANT, "lasting", 10, None)
        assert [turn.message for turn in turns] == [OTHER, ASKED]


async def test_law_10_what_a_replica_has_kept_is_used_only_as_the_head(redis_url: str) -> None:
    moved, twin, model = "moved", "stayed", loaded()
    async with opened(redis_url, model) as engine, opened(redis_url, model) as other:
        for session_id in (moved, twin):
            await engine.create_session(TENANT, session_id, {}, False)
        script = ((FIRST, engine), (OTHER, other), (ASKED, engine), (FIRST, other), (ASKED, engine), (OTHER, engine))
        for number, (message, replica) in enumerate(script):
            # A look at the memory, or a turn that learns nothing, is at the head too.
            assert (await engine.memory(TENANT, moved)).version == number
            seen = await say(engine, moved, ASKED, learn=False)
            assert _said(seen) == _said(await say(engine, twin, ASKED, learn=False))
            assert _said(await say(replica, moved, message)) == _said(await say(engine, twin, message))
        assert bits(await stored_memory(engine, moved)) == bits(await stored_memory(engine, twin))
        turns, _ = await engine.turns(TENANT, moved, 10, None)
        assert [turn.message for turn in turns] == [message for message, _ in script]
        with pytest.raises(Conflict):
            await say(engine, moved, ASKED, if_version=len(script) - 1)


async def test_law_10_a_memory_is_not_kept_as_anothers_version_when_the_commits_answer_is_late(
    redis_url: str,
) -> None:
    here = Recorder()
    async with opened(redis_url, observer=here) as engine, opened(redis_url) as other:
        session_id = "late"
        await engine.create_session(TENANT, session_id, {}, False)
        commit = engine.store.commit

        async def answered_late(lease: Lease, expected_version: int, made: Commit) -> Head:
            await commit(lease, expected_version, made)
            await engine.store.release(lease)  # as if it had run out
            await say(other, session_id, OTHER, max_tokens=1)
            return await commit(lease, expected_version, made)  # what a lost answer makes the committer do

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.store, "commit", answered_late)
            await say(engine, session_id, FIRST, max_tokens=1)
        assert (await say(engine, session_id, FIRST, max_tokens=1)).memory.version == 3
    assert [source for operation, source in here.transfers if operation == "load"] == ["redis", "redis"]


async def test_law_10_replicas_that_race_take_turns(redis_url: str) -> None:
    model = loaded()
    async with opened(redis_url, model) as one, opened(redis_url, model) as two, opened(redis_url, model) as three:
        await one.create_session(TENANT, "raced-for", {}, False)
        spoken = [f"Owl {number} said so." for number in range(9)]
        racers = [say((one, two, three)[n % 3], "raced-for", text, max_tokens=3) for n, text in enumerate(spoken)]
        turns = await asyncio.gather(*racers)
        in_order = sorted(turns, key=lambda turn: turn.memory.version)
        assert [turn.memory.version for turn in in_order] == list(range(1, 10))
        stored, _ = await two.turns(TENANT, "raced-for", 20, None)
        assert [turn.id for turn in stored] == [turn.id for turn in in_order]
        # Each learned on top of the one before: in that order on one replica it is the same memory.
        await one.create_session(TENANT, "in-order", {}, False)
        for turn in in_order:
            again = await say(one, "in-order", turn.message, max_tokens=3)
            assert (again.reply, again.memory) == (turn.reply, turn.memory)
        assert bits(await stored_memory(one, "in-order")) == bits(await stored_memory(one, "raced-for"))


async def test_law_10_a_session_made_anew_is_not_written_by_a_turn_of_the_old_one(redis_url: str) -> None:
    model = loaded()
    async with opened(redis_url, model) as engine, opened(redis_url, model) as other:
        await engine.create_session(TENANT, "anew", {}, False)
        await say(engine, "anew", FIRST)
        fresh = await say(other, "anew", ASKED, learn=False, if_version=1)
        events = await _until_it_speaks(engine, "anew")
        await other.delete_session(TENANT, "anew")
        await other.create_session(TENANT, "anew", {}, False)
        before = await everything(redis_url)
        with pytest.raises(LeaseLost):
            await _rest(events)
        assert await everything(redis_url) == before
        # Neither replica's copy of the old memory comes back, also not at the old one's version.
        for replica in (engine, other):
            assert (await replica.memory(TENANT, "anew")).version == 0
            blank = await say(replica, "anew", ASKED, learn=False)
            assert blank.memory.surprise != fresh.memory.surprise
        await say(other, "anew", OTHER)
        again = await say(engine, "anew", ASKED, learn=False)
        assert again.memory.version == fresh.memory.version == 1
        assert _said(again) == _said(await say(other, "anew", ASKED, learn=False))
        assert again.memory.surprise != fresh.memory.surprise

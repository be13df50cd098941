"""Conversations that come whole: what is new of them is read, and where they go back, the session does, at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from engine.core import Said, Turn, TurnCompleted, TurnCreated, TurnRequest
from engine.engine import Engine
from engine.errors import Conflict, Draining, InvalidRequest, NotFound, TooLarge
from tests.engines import TENANT, bits, everything, opened, say, stored_memory

FIXED: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def chat(
    engine: Engine,
    messages: list[Said],
    session_id: str | None = "s",
    follows: str | None = None,
    **request: Any,
) -> Turn:
    asked = TurnRequest("", **{**FIXED, **request})
    async with contextlib.aclosing(engine.chat(TENANT, session_id, messages, asked, follows)) as events:
        async for event in events:
            if isinstance(event, TurnCompleted):
                return event.turn
    raise AssertionError("a turn ends with an error or with turn.completed")


async def talk(engine: Engine, num_turns: int, session_id: str = "s") -> list[Said]:
    messages: list[Said] = []
    for number in range(num_turns):
        messages.append(Said("user", f"Number {number}."))
        messages.append(Said("assistant", (await chat(engine, messages, session_id)).reply))
    return messages


async def test_a_turn_that_goes_back_and_fails_leaves_everything_as_it_was(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = await talk(engine, 3)
        before = await everything(redis_url)
        with pytest.raises(TooLarge):
            await chat(engine, [*messages[:2], Said("user", "x y " * 9000)])
        asked = TurnRequest("", temperature=0.0, max_tokens=500)
        async with contextlib.aclosing(engine.chat(TENANT, "s", messages[:3], asked)) as events:
            assert isinstance(await anext(events), TurnCreated)
            await anext(events)
        await engine.session(TENANT, "s")
        after = await everything(redis_url)
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        # A lease was taken: its number has grown.
        assert all(key.endswith(b":head") for key in changed)
        assert (await engine.session(TENANT, "s")).num_turns == 3


async def test_going_back_and_going_on_is_one_step(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = await talk(engine, 3)
        memory = bits(await stored_memory(engine, "s"))
        turn = await chat(engine, messages[:-1])
        assert (turn.index, turn.memory.version) == (2, 4)
        assert turn.reply == messages[-1].text
        assert bits(await stored_memory(engine, "s")) == memory
        assert [one.version for one in await engine.versions(TENANT, "s")] == [4, 2, 1]
        turn = await chat(engine, [*messages[:2], Said("user", "Another.")])
        assert (turn.index, turn.memory.version) == (1, 5)
        assert [one.version for one in await engine.versions(TENANT, "s")] == [5, 1]
        # What is resident is what is stored.
        async with opened(redis_url) as other:
            here, there = [await say(one, "s", "And?", learn=False) for one in (engine, other)]
            assert (here.reply, here.memory) == (there.reply, there.memory)


async def test_what_the_worker_made_of_a_turn_is_part_of_it(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = await talk(engine, 2)
        await engine.rollback(TENANT, "s", 1)  # stands for any change between turns: version 3, one turn
        turn = await chat(engine, [*messages[:2], Said("user", "Go on.")])
        assert (turn.index, turn.memory.version) == (1, 4)
        await chat(engine, [*messages[:2], Said("user", "Go on.")])
        assert [one.version for one in await engine.versions(TENANT, "s")] == [5, 3, 1]


async def test_further_back_than_versions_are_kept_is_a_conflict(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = await talk(engine, 12)
        with pytest.raises(Conflict, match="are kept"):
            await chat(engine, [*messages[:4], Said("user", "Back here.")])
        assert (await engine.session(TENANT, "s")).num_turns == 12
        assert (await chat(engine, [*messages[:18], Said("user", "Back here.")])).index == 9


async def test_turns_of_both_doors_are_one_conversation(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        told = await say(engine, "s", "My dog is called Rex.")
        messages = [Said("user", told.message), Said("assistant", f"  {told.reply}\n"), Said("user", "And mine?")]
        turn = await chat(engine, messages)
        assert (turn.index, turn.message) == (1, "And mine?")
        told = await say(engine, "s", "I see.")
        more = [*messages, Said("assistant", turn.reply), Said("user", told.message), Said("assistant", told.reply)]
        assert (await chat(engine, [*more, Said("user", "Well.")])).index == 3


async def test_a_fork_and_an_import_know_the_conversation(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = await talk(engine, 3)
        await engine.fork(TENANT, "s", 2, "fork")
        await engine.import_session(TENANT, await engine.export_session(TENANT, "s"), "import")
        assert (await chat(engine, [*messages[:4], Said("user", "Go on.")], "fork")).index == 2
        assert (await chat(engine, [*messages, Said("user", "Go on.")], "import")).index == 3
        with pytest.raises(Conflict, match="contradicts"):
            await chat(engine, [*messages, Said("assistant", "x"), Said("user", "y")], "fork")


async def test_many_retries_at_once_learn_once(redis_url: str) -> None:
    async with opened(redis_url) as engine, opened(redis_url) as other:
        messages = await talk(engine, 2)
        asked = [*messages, Said("user", "Once.")]
        turns = await asyncio.gather(*(chat(one, asked) for one in (engine, other, engine, other)))
        assert {turn.index for turn in turns} == {2}
        assert (await engine.session(TENANT, "s")).num_turns == 3
        transcript, _ = await engine.turns(TENANT, "s", 9, None)
        assert [turn.message for turn in transcript] == ["Number 0.", "Number 1.", "Once."]


async def test_a_repeated_key_is_answered_even_where_the_session_can_no_longer_go_back(redis_url: str) -> None:
    async with opened(redis_url, stored={"keep_versions": 2, "keep_days": 0}) as engine:
        asked = [*await talk(engine, 1), Said("user", "Once.")]
        first = await chat(engine, asked, idempotency_key="k")
        said = [*asked, Said("assistant", first.reply)]
        for number in range(4):
            said.append(Said("user", f"And {number}."))
            said.append(Said("assistant", (await chat(engine, said)).reply))
        again = await chat(engine, asked, idempotency_key="k")
        assert (again.id, again.reply) == (first.id, first.reply)
        assert (await engine.session(TENANT, "s")).num_turns == 6
        with pytest.raises(Conflict):  # without the key what came since would have to be undone
            await chat(engine, asked)


async def test_a_key_is_replayed_whatever_has_come_since(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = [Said("user", "Once.")]
        first = await chat(engine, messages, idempotency_key="k")
        again = await chat(engine, messages, idempotency_key="k")
        assert again.id == first.id
        assert (await engine.session(TENANT, "s")).version == 1
        with pytest.raises(Conflict, match="another body"):
            await chat(engine, [Said("user", "Twice.")], idempotency_key="k")


async def test_without_a_session_turns_run_side_by_side_and_leave_nothing(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = [Said("system", "Be kind."), Said("user", "Hello."), Said("assistant", "Hi."), Said("user", "Well?")]
        turns = await asyncio.gather(*(chat(engine, messages, None) for _ in range(6)))
        assert len({turn.reply for turn in turns}) == 1
        assert not turns[0].memory.learned
        assert await everything(redis_url) == {}


async def test_refusals_make_nothing(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        for session_id in (None, "new"):
            for messages in ([], [Said("user", "a"), Said("assistant", "b")], [Said("system", "a")]):
                with pytest.raises(InvalidRequest):
                    await chat(engine, messages, session_id)
            with pytest.raises(TooLarge):
                await chat(engine, [Said("user", "x y " * 9000)], session_id)
        engine.begin_drain()
        with pytest.raises(Draining):
            await chat(engine, [Said("user", "a")])
        assert await everything(redis_url) == {}


async def test_a_deadline_counts_from_when_it_was_asked(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        begun = time.monotonic()
        turn = await chat(engine, [Said("user", "Hello.")], timeout_s=30.0)
        assert turn.timing.total_ms / 1000 <= time.monotonic() - begun


async def test_what_follows_a_turn_is_new_whoever_said_it(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        messages = await talk(engine, 3)
        turns, _ = await engine.turns(TENANT, "s", 9, None)
        last = await chat(engine, [Said("user", "Go on.")], follows=turns[2].id)
        assert (last.index, last.memory.version) == (3, 4)
        # The same as with the whole conversation, and once more the same: what came after the turn is undone first.
        again = await chat(engine, [*messages, Said("user", "Go on.")])
        for told in (last, await chat(engine, [Said("user", "Go on.")], follows=turns[2].id)):
            assert (told.reply, told.memory.levels) == (again.reply, again.memory.levels)
        others = [Said("assistant", "As I said."), Said("user", "Number 1.")]
        turn = await chat(engine, others, follows=turns[0].id)
        assert (turn.index, turn.usage.prompt_tokens > turns[1].usage.prompt_tokens) == (1, True)
        transcript, _ = await engine.turns(TENANT, "s", 9, None)
        assert [one.id for one in transcript] == [turns[0].id, turn.id]


async def test_a_turn_that_is_not_there_cannot_be_followed(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await talk(engine, 10)
        turns, _ = await engine.turns(TENANT, "s", 10, None)
        before = await everything(redis_url)
        for session_id, turn_id in (("s", "turn-none"), ("none", turns[0].id)):
            with pytest.raises(NotFound):
                await chat(engine, [Said("user", "Go on.")], session_id, follows=turn_id)
        with pytest.raises(Conflict, match="are kept"):
            await chat(engine, [Said("user", "Go on.")], follows=turns[0].id)
        assert await everything(redis_url) == before

"""Law 8. `learn: false` leaves no trace, and no session or tenant can read or change another's memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.core import Turn
from engine.engine import Engine
from engine.errors import NotFound
from engine.sessions.keys import SessionKeys
from tests.engines import TENANT, Recorder, bits, everything, loaded, opened, say, stored_memory
from tests.tiny import memory_distance

# Among neighbours a memory is as alone to float32's rounding, and what is stored has 8 significant bits (law 2).
STORED_TOLERANCE = 2.0**-8

TOLD = "My dog is called Brenko and he loves the snow."
ASKED = "What is the name of my dog?"
LONG = "The train leaves at 17:45, said the owl to the fox in the spring. " * 4

# Questions of every kind that a turn can be.
UNLEARNED: tuple[tuple[str, dict[str, Any]], ...] = (
    (ASKED, {}),
    (LONG, {"max_tokens": 0}),
    (LONG, {"temperature": 2.0, "seed": 3, "max_tokens": 12}),
    (TOLD, {"if_version": 1, "idempotency_key": "key-1", "stop": ("e",)}),
)


def _of(found: dict[bytes, object], tenant: str, session_id: str) -> dict[bytes, object]:
    """What belongs to one session."""
    prefix = SessionKeys(tenant, session_id).head.removesuffix("head").encode()
    return {key: value for key, value in found.items() if key.startswith(prefix)}


def _said(turn: Turn) -> tuple[object, ...]:
    return turn.reply, turn.usage, turn.memory


async def _ask_everything(engine: Engine, session_id: str, **request: Any) -> list[Turn]:
    return [await say(engine, session_id, message, learn=False, **{**asked, **request}) for message, asked in UNLEARNED]


async def test_law_8_turns_that_do_not_learn_leave_the_store_as_it_was(redis_url: str, engine_model: str) -> None:
    told, blank, recorder = f"told-{engine_model}", f"blank-{engine_model}", Recorder()
    model = loaded(engine_model)
    async with opened(redis_url, model, recorder) as engine, opened(redis_url, model, recorder) as other:
        for session_id in (told, blank):
            await engine.create_session(TENANT, session_id, {}, False)
        await say(engine, told, TOLD)
        before, updates = await everything(redis_url), len(recorder.updates)
        # From this replica's own copy of the memory, from the store, and where there is none yet.
        for turn in await _ask_everything(engine, told) + await _ask_everything(other, told):
            assert not turn.memory.learned
            assert turn.memory.version == 1
        for turn in await _ask_everything(engine, blank, if_version=0):
            assert turn.memory.version == 0
        assert await everything(redis_url) == before
        assert len(recorder.updates) == updates
        # One that does learn is seen by this very comparison.
        await say(engine, told, ASKED)
        assert await everything(redis_url) != before


async def test_law_8_turns_that_do_not_learn_change_no_later_reply(redis_url: str, engine_model: str) -> None:
    asked, twin = f"asked-{engine_model}", f"unasked-{engine_model}"
    async with opened(redis_url, loaded(engine_model)) as engine:
        for session_id in (asked, twin):
            await engine.create_session(TENANT, session_id, {}, False)
        first = await _ask_everything(engine, asked, if_version=0)
        assert [_said(turn) for turn in await _ask_everything(engine, asked, if_version=0)] == [*map(_said, first)]
        for number, message in enumerate((TOLD, ASKED)):
            one = await say(engine, asked, message, max_tokens=16)
            assert _said(one) == _said(await say(engine, twin, message, max_tokens=16))
            assert bits(await stored_memory(engine, asked)) == bits(await stored_memory(engine, twin))
            again = await _ask_everything(engine, asked, if_version=number + 1)
            # They do read the memory: what was learned shows in what they say or are surprised by.
            assert [turn.memory.surprise for turn in again] != [turn.memory.surprise for turn in first]
        assert (await engine.session(TENANT, asked)).num_turns == 2


async def _learn(engine: Engine, session_id: str) -> None:
    for _ in range(2):
        await say(engine, session_id, LONG, max_tokens=12)


async def test_law_8_beside_a_neighbour_that_learns(redis_url: str) -> None:
    recorder, model = Recorder(), loaded()
    async with opened(redis_url, model, recorder) as engine, opened(redis_url, model) as other:
        for session_id in ("quiet", "learning", "learning-alone"):
            await engine.create_session(TENANT, session_id, {}, False)
            await say(engine, session_id, TOLD)
        alone = await _ask_everything(engine, "quiet")
        await _learn(engine, "learning-alone")
        before = await everything(redis_url)
        async with asyncio.TaskGroup() as together:
            together.create_task(_learn(engine, "learning"))
            beside = together.create_task(_ask_everything(engine, "quiet"))
            # Also of the very session that learns, on another replica, which waits for no lease.
            together.create_task(_ask_everything(other, "learning", if_version=None))
        assert max(recorder.batches) == 2, "they must really share the batch"
        assert [turn.reply for turn in beside.result()] == [turn.reply for turn in alone]
        after = await everything(redis_url)
        assert _of(after, TENANT, "quiet") == _of(before, TENANT, "quiet") != {}
        # Nothing came or went but what the neighbour learned, and its place in the worker's line.
        changed = {key for key in before | after if before.get(key) != after.get(key) and b"{work}" not in key}
        assert changed
        assert changed <= _of(before | after, TENANT, "learning").keys()
        assert (await engine.session(TENANT, "learning")).version == 3
        expected = await stored_memory(engine, "learning-alone")
        assert memory_distance(await stored_memory(engine, "learning"), expected) <= STORED_TOLERANCE


# Names that a careless key would take for one another's.
STRANGERS = (("acme", "globex", "diary"), ("a", "a:b", "b:c"), ("x", "X", "y"), ("{t}", "t", "{t}:s"))


@pytest.mark.parametrize(("owner", "stranger", "session_id"), STRANGERS)
async def test_law_8_a_stranger_finds_nothing(redis_url: str, owner: str, stranger: str, session_id: str) -> None:
    async with opened(redis_url) as engine:
        await engine.create_session(owner, session_id, {"mood": "good"}, False)
        await say(engine, session_id, TOLD, owner)
        before = await everything(redis_url)
        attempts = (
            lambda: say(engine, session_id, ASKED, stranger),
            lambda: say(engine, session_id, ASKED, stranger, learn=False),
            lambda: say(engine, session_id, ASKED, stranger, idempotency_key="key-1"),
            lambda: engine.session(stranger, session_id),
            lambda: engine.memory(stranger, session_id),
            lambda: engine.turns(stranger, session_id, 10, None),
            lambda: engine.update_session(stranger, session_id, {"mood": "bad"}, True),
            lambda: engine.delete_session(stranger, session_id),
        )
        for attempt in attempts:
            with pytest.raises(NotFound):
                await attempt()
        assert session_id not in [session.id for session in (await engine.sessions(stranger, 100, None))[0]]
        assert await everything(redis_url) == before
        assert session_id in [session.id for session in (await engine.sessions(owner, 100, None))[0]]


async def _conversation(engine: Engine, tenant: str, session_id: str, told: str) -> list[tuple[object, ...]]:
    await engine.create_session(tenant, session_id, {}, False)
    turns = [await say(engine, session_id, told, tenant, max_tokens=12, idempotency_key="key-1")]
    turns += [await say(engine, session_id, ASKED, tenant, max_tokens=12, learn=learn) for learn in (False, True)]
    return [_said(turn) for turn in turns]


async def test_law_8_sessions_of_one_name_never_mix(redis_url: str) -> None:
    told = {"north": TOLD, "south": "The fox likes Zürich in spring, so do not be late."}
    async with opened(redis_url) as engine:
        alone = {tenant: await _conversation(engine, tenant, "alone", text) for tenant, text in told.items()}
        for tenant, text in told.items():
            # One after the other: the second finds the first one's session of that id resident.
            assert await _conversation(engine, tenant, "shared", text) == alone[tenant]
        for tenant in told:
            memory = bits(await stored_memory(engine, "shared", tenant))
            assert memory == bits(await stored_memory(engine, "alone", tenant))
        assert alone["north"] != alone["south"]
        # The end of one is not the end of the other.
        await engine.delete_session("north", "shared")
        with pytest.raises(NotFound):
            await say(engine, "shared", ASKED, "north")
        assert (await say(engine, "shared", ASKED, "south")).memory.version == 3

"""Going back, forking, exporting and importing: bit for bit, and the same words as back then."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from redis.asyncio import Redis

from engine.core import Turn
from engine.engine import Engine
from engine.errors import Conflict, InvalidRequest, NotFound
from engine.model.weights import fingerprint
from engine.sessions.snapshot import pack, unpack
from engine.sessions.transfer import read_export, write_export
from tests.engines import TENANT, bits, everything, loaded, opened, say, stored_memory

MESSAGES = ("My dog is called Rex.", "The train leaves at 17:45, I think.", "He likes the river in spring.")
ASKED = "What is the name of my dog?"


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def told(engine: Engine, session_id: str = "s", tenant: str = TENANT) -> list[Turn]:
    await engine.create_session(tenant, session_id, {"who": "me"}, True)
    return [await say(engine, session_id, message, tenant) for message in MESSAGES]


def said(turn: Turn) -> tuple[object, ...]:
    """What of a turn does not depend on when it was and under which number."""
    return turn.message, turn.reply, turn.usage, turn.memory.surprise, turn.memory.levels


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_law_3_a_version_that_was_gone_back_to_is_that_version(redis_url: str, version: int) -> None:
    async with opened(redis_url) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        memories, turns = [bits(await stored_memory(engine, "s"))], []
        for message in MESSAGES:
            turns.append(await say(engine, "s", message, temperature=1.0, seed=3))
            memories.append(bits(await stored_memory(engine, "s")))
        session = await engine.rollback(TENANT, "s", version)
        assert (session.version, session.num_turns) == (4, version)
        assert bits(await stored_memory(engine, "s")) == memories[version]
        assert [turn.id for turn in (await engine.turns(TENANT, "s", 9, None))[0]] == [t.id for t in turns[:version]]
        for turn in turns[version:]:
            assert said(await say(engine, "s", turn.message, temperature=1.0, seed=3)) == said(turn)
        assert bits(await stored_memory(engine, "s")) == memories[-1]


async def test_going_back_to_the_head_changes_nothing(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await told(engine)
        before = await everything(redis_url)
        assert (await engine.rollback(TENANT, "s", 3)).version == 3
        after = await everything(redis_url)
        changed = {key for key in before if before[key] != after.get(key)}
        assert all(key.endswith(b":head") for key in changed), "a lease was taken, and no more"


async def test_what_is_not_retained_or_not_there_is_not_found(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await told(engine)
        for version in (4, 99):
            with pytest.raises(NotFound, match="retained"):
                await engine.rollback(TENANT, "s", version)
            with pytest.raises(NotFound, match="retained"):
                await engine.fork(TENANT, "s", version, None)
        for session, tenant in (("none", TENANT), ("s", "other")):
            for undo in (
                engine.versions(tenant, session),
                engine.rollback(tenant, session, 1),
                engine.fork(tenant, session, 1, None),
                engine.export_session(tenant, session),
            ):
                with pytest.raises(NotFound):
                    await undo
        assert (await engine.session(TENANT, "s")).version == 3


async def test_another_replica_sees_that_a_session_went_back(redis_url: str) -> None:
    async with opened(redis_url) as engine, opened(redis_url) as other:
        await told(engine)
        await say(other, "s", ASKED, learn=False)
        await engine.rollback(TENANT, "s", 1)
        here, there = [await say(one, "s", ASKED, learn=False) for one in (engine, other)]
        assert said(here) == said(there)
        assert there.memory.version == 4


async def test_a_turn_that_runs_ends_before_the_session_goes_back(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await told(engine)
        running = asyncio.create_task(say(engine, "s", ASKED, max_tokens=40))
        await asyncio.sleep(0.02)
        session = await engine.rollback(TENANT, "s", 1)
        turn = await running
        transcript = [turn.id for turn in (await engine.turns(TENANT, "s", 9, None))[0]]
        if turn.memory.version == 4:
            assert (session.version, len(transcript)) == (5, 1)
        else:
            assert (session.version, turn.index, transcript[1:]) == (4, 1, [turn.id])


async def test_a_fork_goes_its_own_way(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        turns = await told(engine)
        fork = await engine.fork(TENANT, "s", 2, "fork")
        assert (fork.id, fork.version, fork.num_turns, fork.metadata) == ("fork", 2, 2, {"who": "me"})
        assert not fork.contribute, "what one session may contribute, its copy may not once more"
        copied = (await engine.turns(TENANT, "fork", 9, None))[0]
        assert copied == [
            replace(turn, session_id="fork", timing=copy.timing) for turn, copy in zip(turns[:2], copied, strict=True)
        ]
        again = await say(engine, "fork", MESSAGES[2])
        assert said(again) == said(turns[2])
        assert bits(await stored_memory(engine, "fork")) == bits(await stored_memory(engine, "s"))
        before = bits(await stored_memory(engine, "s"))
        await say(engine, "fork", ASKED)
        await engine.delete_session(TENANT, "fork")
        assert bits(await stored_memory(engine, "s")) == before
        assert (await engine.session(TENANT, "s")).version == 3


@pytest.mark.parametrize("version", [None, 0])
async def test_a_fork_of_the_head_and_of_nothing(redis_url: str, version: int | None) -> None:
    async with opened(redis_url) as engine:
        await told(engine)
        fork = await engine.fork(TENANT, "s", version, None)
        assert fork.version == fork.num_turns == (3 if version is None else 0)
        with pytest.raises(Conflict):
            await engine.fork(TENANT, "s", version, "s")
        assert (await say(engine, fork.id, ASKED)).memory.version == fork.version + 1


async def test_an_export_is_imported_bit_for_bit_elsewhere(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        turns = await told(engine)
        file = await engine.export_session(TENANT, "s")
        memory = bits(await stored_memory(engine, "s"))
        await engine.delete_session(TENANT, "s")
        session = await engine.import_session("other", file, "t")
        assert (session.id, session.version, session.num_turns, session.contribute) == ("t", 3, 3, False)
        assert bits(await stored_memory(engine, "t", "other")) == memory
        copied = (await engine.turns("other", "t", 9, None))[0]
        assert [said(turn) for turn in copied] == [said(turn) for turn in turns]
        assert {turn.session_id for turn in copied} == {"t"}
        assert (await say(engine, "t", ASKED, "other")).memory.version == 4
        again = await engine.export_session("other", "t")
        assert read_export(again, fingerprint(engine.model)).turns[:3] == copied


async def test_a_session_that_has_read_nothing_is_exported_too(redis_url: str) -> None:
    async with opened(redis_url, loaded("zero")) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        session = await engine.import_session(TENANT, await engine.export_session(TENANT, "s"), None)
        assert (session.version, session.memory_bytes) == (0, 0)
        await engine.create_session(TENANT, "fresh", {}, False)
        assert said(await say(engine, session.id, ASKED)) == said(await say(engine, "fresh", ASKED))


async def test_an_import_of_another_model_is_a_conflict_and_of_a_taken_id_too(redis_url: str) -> None:
    async with opened(redis_url) as engine, opened(redis_url, loaded(num_layers=1)) as other:
        await told(engine)
        file = await engine.export_session(TENANT, "s")
        before = await everything(redis_url)
        with pytest.raises(Conflict, match="another model"):
            await other.import_session(TENANT, file, "t")
        with pytest.raises(Conflict, match="already"):
            await engine.import_session(TENANT, file, "s")
        assert await everything(redis_url) == before


async def test_a_memory_made_by_hand_is_refused(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await told(engine)
        mark = fingerprint(engine.model)
        good = read_export(await engine.export_session(TENANT, "s"), mark)
        tensors = unpack(good.memory, fingerprint=mark)
        name = "titans.0.memory.w1"
        for changed in (
            {name: torch.full_like(tensors[name], torch.inf)},
            {name: torch.full_like(tensors[name], torch.nan)},
            {name: tensors[name][:1]},
            {name: tensors[name].float()},
            {"titans.0.nothing": torch.ones(3)},
            {"position": torch.tensor(-1)},
            {"position": torch.tensor(3.0)},
            {"position": tensors["position"] + 1},
        ):
            memory = pack({**tensors, **changed}, fingerprint=mark)
            with pytest.raises(InvalidRequest, match="as it was written"):
                await engine.import_session(TENANT, write_export(replace(good, memory=memory)), None)


async def test_deleting_all_of_them_leaves_nothing(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await told(engine)
        await engine.fork(TENANT, "s", 1, "fork")
        await engine.import_session(TENANT, await engine.export_session(TENANT, "s"), "import")
        await engine.rollback(TENANT, "s", 1)
        for session_id in ("s", "fork", "import"):
            await engine.delete_session(TENANT, session_id)
    client = Redis.from_url(redis_url)
    assert await client.keys("*") == []
    await client.aclose()


async def test_the_last_turn_can_be_undone_and_no_other(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        memories, turns = [bits(await stored_memory(engine, "s"))], []
        for message in MESSAGES:
            turns.append(await say(engine, "s", message))
            memories.append(bits(await stored_memory(engine, "s")))
        before = await everything(redis_url)
        with pytest.raises(Conflict, match="last turn"):
            await engine.undo_turn(TENANT, "s", turns[0].id)
        for session_id, turn_id, tenant in (
            ("s", "turn-x", TENANT),
            ("t", turns[2].id, TENANT),
            ("s", turns[2].id, "o"),
        ):
            with pytest.raises(NotFound):
                await engine.undo_turn(tenant, session_id, turn_id)
        after = await everything(redis_url)
        assert {key for key in after if before.get(key) != after[key]} <= {k for k in before if k.endswith(b":head")}
        for turn in reversed(turns):
            session = await engine.undo_turn(TENANT, "s", turn.id)
            assert session.num_turns == turn.index
            assert bits(await stored_memory(engine, "s")) == memories[turn.index]
            with pytest.raises(NotFound):
                await engine.read_turn(TENANT, "s", turn.id)

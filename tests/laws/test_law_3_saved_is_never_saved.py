"""Law 3. Saved and loaded = never saved, bit for bit; a retained version restored is that version."""

from __future__ import annotations

import secrets
from typing import Any

from engine.config import CMS_FAST, TITANS
from engine.core import Turn
from engine.engine import Engine
from engine.model.hope import Memory
from engine.model.portable import level_of, pack_row, unpack_row
from engine.model.weights import fingerprint
from engine.sessions.records import Commit
from engine.sessions.snapshot import pack, unpack
from tests.engines import TENANT, Recorder, bits, loaded, opened, say, stored_memory

# Three kinds of turn: greedy, drawn, and one that ends in the middle of a chunk without a reply.
TURNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("My dog is called Brenko and he loves the snow, the river and long walks in the evening.", {}),
    ("What is the name of my dog?", {"temperature": 0.8, "seed": 5}),
    ("Oh.", {"max_tokens": 0}),
    ("Actually, he is called Max now.", {"temperature": 1.3, "top_p": 0.9, "seed": 6}),
    ("And who am I?", {}),
)


def _said(turn: Turn) -> tuple[object, ...]:
    """What the model did in a turn, to the last bit."""
    return turn.reply, turn.finish_reason, turn.usage, turn.memory


async def _take(engine: Engine, session_id: str, number: int) -> Turn:
    message, request = TURNS[number]
    return await say(engine, session_id, message, **{"max_tokens": 10, **request})


async def _blob(engine: Engine, session_id: str, version: int | None = None) -> bytes:
    _, blob = await engine.store.load_memory(TENANT, session_id, version)
    assert blob is not None
    return blob


async def test_law_3_reloaded_before_every_turn_is_kept_in_memory(redis_url: str, engine_model: str) -> None:
    keeping, loading = Recorder(), Recorder()
    kept, reloaded = f"kept-{engine_model}", f"reloaded-{engine_model}"
    model = loaded(engine_model)
    async with (
        opened(redis_url, model, keeping) as keeper,
        opened(redis_url, model, loading, resident_bytes=0) as loader,
    ):
        for session_id in (kept, reloaded):
            await keeper.create_session(TENANT, session_id, {}, False)
        for number in range(len(TURNS)):
            one, other = await _take(keeper, kept, number), await _take(loader, reloaded, number)
            assert _said(one) == _said(other)
            assert one.memory.version == number + 1
            assert bits(await stored_memory(loader, reloaded)) == bits(await stored_memory(keeper, kept))
        # The first turn has nothing to load; after it one engine never loads, the other always does.
        loads = [outcome for operation, outcome in keeping.transfers if operation == "load"]
        assert loads == ["redis"] + ["resident"] * (len(TURNS) - 1)
        loads = [outcome for operation, outcome in loading.transfers if operation == "load"]
        assert loads == ["redis"] * len(TURNS)


async def test_law_3_each_turn_on_a_new_engine_is_all_on_one(redis_url: str) -> None:
    model = loaded()
    async with opened(redis_url, model) as one:
        for session_id in ("on-one", "on-many"):
            await one.create_session(TENANT, session_id, {}, False)
        for number in range(len(TURNS)):
            expected = await _take(one, "on-one", number)
            async with opened(redis_url, model) as other:
                assert _said(await _take(other, "on-many", number)) == _said(expected)
        assert bits(await stored_memory(one, "on-many")) == bits(await stored_memory(one, "on-one"))


async def test_law_3_a_memory_is_stored_as_it_is_used(redis_url: str, engine_model: str) -> None:
    session_id = f"exact-{engine_model}"
    async with opened(redis_url, loaded(engine_model)) as engine:
        await engine.create_session(TENANT, session_id, {}, False)
        for number in range(len(TURNS)):
            await _take(engine, session_id, number)
            session = await engine.session(TENANT, session_id)
            _, resident = await engine._turns.grounds.bring_up(TENANT, session)
            stored = await stored_memory(engine, session_id)
            assert {TITANS, CMS_FAST} <= {level_of(name) for name in stored}, "a turn leaves something to compare"
            assert bits(unpack_row(stored, engine.model)) == bits(resident)
            assert bits(pack_row(resident, engine.model.config.chunk_projections)) == bits(stored)


async def test_law_3_a_retained_version_stays_the_bytes_it_was(redis_url: str, engine_model: str) -> None:
    session_id = f"retained-{engine_model}"
    async with opened(redis_url, loaded(engine_model)) as engine:
        await engine.create_session(TENANT, session_id, {}, False)
        heads: dict[int, bytes] = {}
        for number in range(len(TURNS)):
            turn = await _take(engine, session_id, number)
            heads[turn.memory.version] = await _blob(engine, session_id)
        retained = await engine.store.versions(TENANT, session_id)
        assert [version.version for version in retained] == sorted(heads, reverse=True)
        mark = fingerprint(engine.model)
        before: Memory = {}
        for version, head in heads.items():
            blob = await _blob(engine, session_id, version)
            assert blob == head
            tensors = unpack(blob, fingerprint=mark)
            assert bits(tensors) != bits(before), "every turn leaves another memory"
            before = tensors
            again = pack_row(unpack_row(tensors, engine.model), engine.model.config.chunk_projections)
            assert bits(again) == bits(tensors)
            assert bits(unpack(pack(again, fingerprint=mark), fingerprint=mark)) == bits(tensors)


async def test_law_3_a_retained_version_restored_is_that_version(redis_url: str, engine_model: str) -> None:
    session_id = f"restored-{engine_model}"
    async with opened(redis_url, loaded(engine_model)) as engine:
        await engine.create_session(TENANT, session_id, {}, False)
        turns = [await _take(engine, session_id, number) for number in range(len(TURNS))]
        heads = [await _blob(engine, session_id, version) for version in range(1, len(TURNS) + 1)]
        for version in (3, 1):
            await _restore(engine, session_id, version)
            assert await _blob(engine, session_id) == heads[version - 1]
            # From there the conversation goes as it went, although this engine holds a later memory.
            again = await _take(engine, session_id, version)
            assert (again.reply, again.memory.surprise) == (turns[version].reply, turns[version].memory.surprise)
            assert again.memory.levels == turns[version].memory.levels
            mark = fingerprint(engine.model)
            assert bits(await stored_memory(engine, session_id)) == bits(unpack(heads[version], fingerprint=mark))


async def _restore(engine: Engine, session_id: str, version: int) -> None:
    """Commits a retained version as the new head, as any replica may."""
    blob = await _blob(engine, session_id, version)
    lease = await engine.store.acquire(TENANT, session_id, secrets.token_hex(8), 1.0)
    head = await engine.store.get(TENANT, session_id)
    restored = Commit(blob, (TITANS, CMS_FAST), None, 0, None, "", secrets.token_hex(8))
    await engine.store.commit(lease, head.version, restored)
    await engine.store.release(lease)

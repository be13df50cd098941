"""The engine's face: whom it admits, its sessions, its health, and how it closes; over a real store."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from engine import health as health_module
from engine.config import EngineSettings, StoreSettings
from engine.core import TurnCompleted, TurnCreated, TurnEvent, TurnRequest, TurnToken
from engine.engine import Engine
from engine.errors import (
    Conflict,
    DeadlineExceeded,
    Draining,
    HopeError,
    InvalidRequest,
    NotFound,
    Overloaded,
    StoreUnavailable,
    TooLarge,
    TurnCancelled,
)
from engine.sessions.embedded import EmbeddedStore
from tests.engine.loops import FOREVER, tireless
from tests.engines import TENANT, Recorder, everything, loaded, opened, say, stored_memory
from tests.tiny import tiny_tokenizer


async def _session(engine: Engine, tenant: str = TENANT) -> str:
    return (await engine.create_session(tenant, None, {}, False)).id


def _long_turn(engine: Engine, session_id: str, timeout_s: float = 60.0) -> AsyncGenerator[TurnEvent, None]:
    """With a tireless model it never ends by itself."""
    asked = TurnRequest("tell me everything", temperature=0.0, max_tokens=FOREVER, timeout_s=timeout_s)
    return engine.turn(TENANT, session_id, asked)


async def _whole(engine: Engine, session_id: str, message: str, key: str | None = None) -> None:
    """A turn heard to its very end: what became of it has been reported."""
    async for _ in engine.turn(TENANT, session_id, TurnRequest(message, max_tokens=3, idempotency_key=key)):
        pass


async def _heard(events: AsyncGenerator[TurnEvent, None]) -> TurnToken:
    """The turn is running: its first piece of text."""
    assert isinstance(await anext(events), TurnCreated)
    piece = await anext(events)
    assert isinstance(piece, TurnToken)
    return piece


async def test_an_empty_message_is_refused(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        session_id = await _session(engine)
        with pytest.raises(InvalidRequest) as refusal:
            await say(engine, session_id, "")
        assert refusal.value.param == "message"
        assert (await engine.session(TENANT, session_id)).version == 0


async def test_a_message_may_be_as_long_as_the_limit_and_no_longer(redis_url: str) -> None:
    message = "My dog is called Rex."
    size = len(tiny_tokenizer().encode(message))
    async with opened(redis_url, max_message_tokens=size) as engine:
        session_id = await _session(engine)
        assert (await say(engine, session_id, message)).memory.version == 1
        with pytest.raises(TooLarge, match=f"more than {size}") as refusal:
            await say(engine, session_id, message + " 7")
        assert refusal.value.param == "message"
        assert (await engine.session(TENANT, session_id)).version == 1


async def test_a_full_queue_refuses_the_next_turn_until_one_has_ended(redis_url: str) -> None:
    async with opened(redis_url, (tireless(), tiny_tokenizer()), max_queue=2) as engine:
        busy, idle = await _session(engine), await _session(engine)
        running = [_long_turn(engine, session_id) for session_id in (busy, await _session(engine))]
        for events in running:
            await _heard(events)
        with pytest.raises(Overloaded) as refusal:
            await say(engine, idle, "hello")
        assert (refusal.value.retry_after_s or 0.0) > 0.0
        health = await engine.health()
        assert (health.alive, health.ready, health.reason) == (True, False, "the queue is full")
        await running[0].aclose()
        assert (await say(engine, idle, "hello")).memory.version == 1
        await running[1].aclose()
        assert (await engine.session(TENANT, busy)).version == 0


async def test_a_draining_engine_finishes_what_runs_and_takes_no_more(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        session_id, other = await _session(engine), await _session(engine)
        events = engine.turn(TENANT, session_id, TurnRequest("hello", max_tokens=3))
        await anext(events)
        engine.begin_drain()
        with pytest.raises(Draining) as refusal:
            await say(engine, other, "hello")
        assert (refusal.value.retry_after_s or 0.0) > 0.0
        assert [event async for event in events][-1].__class__ is TurnCompleted
        assert (await engine.session(TENANT, session_id)).version == 1


async def test_closing_waits_for_running_turns(redis_url: str) -> None:
    async with opened(redis_url, drain_timeout_s=20.0) as engine:
        session_id = await _session(engine)
        turn = asyncio.create_task(say(engine, session_id, "hello", max_tokens=20))
        await asyncio.sleep(0)
        await engine.close()
        assert turn.done()
        assert turn.result().memory.version == 1


async def test_closing_cancels_what_takes_longer_than_the_drain(redis_url: str) -> None:
    recorder = Recorder()
    async with opened(redis_url, (tireless(), tiny_tokenizer()), recorder, drain_timeout_s=0.05) as engine:
        session_id = await _session(engine)
        events = _long_turn(engine, session_id)
        await _heard(events)
        await engine.close()
        with pytest.raises(TurnCancelled):
            async for _ in events:
                pass
    assert recorder.outcomes == ["cancelled"]
    async with opened(redis_url) as engine:
        assert (await engine.session(TENANT, session_id)).version == 0


async def test_a_turn_that_starts_to_run_after_the_close_is_told(redis_url: str) -> None:
    async with opened(redis_url, drain_timeout_s=0.05) as engine:
        events = engine.turn(TENANT, await _session(engine), TurnRequest("hello", max_tokens=3))
        await anext(events)  # accepted, but its reader has not asked for more yet
        await engine.close()
        with pytest.raises(HopeError):
            await asyncio.wait_for(anext(events), 3.0)


async def test_what_became_of_each_turn_is_reported(redis_url: str) -> None:
    recorder = Recorder()
    async with opened(redis_url, (tireless(), tiny_tokenizer()), recorder) as engine:
        session_id = await _session(engine)
        await _whole(engine, session_id, "hello")
        events = _long_turn(engine, session_id)
        await _heard(events)
        await events.aclose()
        with pytest.raises(DeadlineExceeded):
            async for _ in _long_turn(engine, session_id, timeout_s=0.1):
                pass
        with pytest.raises(NotFound):
            await _whole(engine, "nobody", "hello")
        assert (await engine.session(TENANT, session_id)).version == 1
    assert recorder.outcomes == ["completed", "cancelled", "deadline", "failed"]


async def test_refused_and_replayed_turns_are_reported_as_such(redis_url: str) -> None:
    """As `Observer.turn_finished` promises."""
    recorder = Recorder()
    async with opened(redis_url, observer=recorder) as engine:
        session_id = await _session(engine)
        for _ in range(2):
            await _whole(engine, session_id, "hello", "once")
        with pytest.raises(InvalidRequest):
            await _whole(engine, session_id, "")
        engine.begin_drain()
        with pytest.raises(Draining):
            await _whole(engine, session_id, "hello")
    assert recorder.outcomes == ["completed", "replayed", "refused", "refused"]


async def test_a_session_is_made_found_changed_and_removed(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        made = await engine.create_session(TENANT, f"mine-{secrets.token_hex(4)}", {"colour": "blue"}, True)
        assert (made.version, made.num_turns, made.num_tokens, made.memory_bytes) == (0, 0, 0, 0)
        assert (made.metadata, made.contribute, made.object) == ({"colour": "blue"}, True, "session")
        assert await engine.session(TENANT, made.id) == made
        with pytest.raises(Conflict) as refusal:
            await engine.create_session(TENANT, made.id, {}, False)
        assert refusal.value.param == "id"
        changed = await engine.update_session(TENANT, made.id, {"colour": "red"}, None)
        assert (changed.metadata, changed.contribute, changed.version) == ({"colour": "red"}, True, 0)
        changed = await engine.update_session(TENANT, made.id, None, False)
        assert (changed.metadata, changed.contribute) == ({"colour": "red"}, False)
        assert changed.updated_at > made.updated_at
        await engine.delete_session(TENANT, made.id)
        for ask in (engine.session, engine.delete_session, engine.memory):
            with pytest.raises(NotFound):
                await ask(TENANT, made.id)
        with pytest.raises(NotFound):
            await say(engine, made.id, "hello")


async def test_names_made_up_by_the_engine_are_all_different(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        assert len({await _session(engine) for _ in range(20)}) == 20


async def test_pages_of_a_tenants_sessions(redis_url: str) -> None:
    tenant, other = secrets.token_hex(6), secrets.token_hex(6)
    async with opened(redis_url) as engine:
        await _session(engine, other)
        names = sorted([await _session(engine, tenant) for _ in range(5)])
        found: list[str] = []
        for expected_more in (True, True, False):
            page, more = await engine.sessions(tenant, 2, found[-1] if found else None)
            found += [session.id for session in page]
            assert more == expected_more
        assert found == names
        with pytest.raises(NotFound):
            await engine.session(other, names[0])


async def test_what_was_deleted_leaves_nothing_behind_though_it_was_in_use(redis_url: str) -> None:
    async with opened(redis_url, (tireless(), tiny_tokenizer())) as engine:
        session_id = await _session(engine)
        await say(engine, session_id, "My dog is called Rex.", idempotency_key="once")
        events = engine.turn(TENANT, session_id, TurnRequest("and yours?", temperature=0.0, max_tokens=40))
        await _heard(events)
        await engine.delete_session(TENANT, session_id)
        with pytest.raises(HopeError):
            async for _ in events:
                pass
        left = await everything(redis_url)
    assert [key for key, value in left.items() if session_id in repr((key, value))] == []


@pytest.mark.parametrize("by_another_replica", [False, True])
async def test_a_session_made_anew_under_its_id_knows_nothing(redis_url: str, by_another_replica: bool) -> None:
    async with opened(redis_url) as engine, opened(redis_url) as other:
        session_id = await _session(engine)
        first = await say(engine, session_id, "My dog is called Rex.")
        before = await stored_memory(engine, session_id)
        remover = other if by_another_replica else engine
        await remover.delete_session(TENANT, session_id)
        await remover.create_session(TENANT, session_id, {}, False)
        assert {level.updates for level in (await engine.memory(TENANT, session_id)).levels} == {0}
        again = await say(engine, session_id, "My dog is called Rex.")
        assert (again.index, again.memory, again.reply) == (0, first.memory, first.reply)
        after = await stored_memory(engine, session_id)
        assert all(bool((after[name] == value).all()) for name, value in before.items())


async def test_a_cached_memory_of_the_same_version_is_not_taken_for_that_of_another_life(redis_url: str) -> None:
    async with opened(redis_url) as engine, opened(redis_url) as other:
        session_id = await _session(engine)
        await say(engine, session_id, "My dog is called Rex.")
        await other.delete_session(TENANT, session_id)
        await other.create_session(TENANT, session_id, {}, False)
        turn = await say(other, session_id, "The train leaves at 17:45.")
        assert await engine.memory(TENANT, session_id) == await other.memory(TENANT, session_id)
        assert turn.memory.version == 1


async def test_health_of_an_engine_that_is_well_then_drains(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(redis_url) as engine:
        health = await engine.health()
        assert (health.alive, health.ready, health.reason) == (True, True, None)
        assert await engine.health() is health, "a probe a second is enough for the store"
        monkeypatch.setattr(health_module, "HEALTH_TTL_S", 0.0)
        engine.begin_drain()
        health = await engine.health()
        assert (health.alive, health.ready, health.reason) == (True, False, "draining")
        await asyncio.to_thread(engine._turns.loop.stop)
        health = await engine.health()
        assert (health.alive, health.ready) == (False, False)
        assert health.reason


async def test_health_and_turns_without_a_store(tmp_path: Path) -> None:
    store = await EmbeddedStore.start(tmp_path)
    async with opened(store.url) as engine:
        session_id = await _session(engine)
        await store.stop()
        health = await engine.health()
        assert (health.alive, health.ready, health.reason) == (True, False, "the store does not answer")
        with pytest.raises(StoreUnavailable) as refusal:
            await say(engine, session_id, "hello")
        assert (refusal.value.retry_after_s or 0.0) > 0.0


async def test_an_engine_without_a_store_does_not_open(tmp_path: Path) -> None:
    settings = StoreSettings(redis_url=f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(StoreUnavailable):
        await Engine.open(EngineSettings(), settings, Recorder(), loaded())


async def test_an_engine_may_bring_its_own_store(tmp_path: Path) -> None:
    for version in (1, 2):
        engine = await Engine.open(EngineSettings(), StoreSettings(data_dir=tmp_path), Recorder(), loaded())
        try:
            with contextlib.suppress(Conflict):
                await engine.create_session(TENANT, "mine", {}, False)
            assert (await say(engine, "mine", "hello")).memory.version == version
        finally:
            await engine.close()

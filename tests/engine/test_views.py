"""What the wire shows of memories and turns: every level with its clock and what it takes, and each turn's surprise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from engine import views
from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW, TITANS, LevelConfig
from engine.core import Session, TurnRequest
from engine.engine import Engine
from engine.live import Finished
from engine.model.hope import Memory
from engine.model.portable import level_of
from engine.views import clock_of, make_turn, milliseconds
from tests.engines import TENANT, loaded, opened, say, stored_memory
from tests.tiny import initial, named_model, random_tokens, tiny_model

LEVELS = [TITANS, CMS_FAST, CMS_MEDIUM, CMS_SLOW]
MODEL = named_model("initial")


async def _session(engine: Engine) -> str:
    return (await engine.create_session(TENANT, None, {}, False)).id


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    sizes = dict.fromkeys(LEVELS, 0)
    for name, tensor in tensors.items():
        sizes[level_of(name)] += tensor.numel() * tensor.element_size()
    return sizes


@pytest.mark.parametrize("name", ["initial", "zero"])
async def test_a_memory_that_has_read_nothing_takes_no_bytes(redis_url: str, name: str) -> None:
    async with opened(redis_url, loaded(name)) as engine:
        session_id = await _session(engine)
        view = await engine.memory(TENANT, session_id)
        assert await stored_memory(engine, session_id) == {}
    assert (view.version, view.generation, view.surprise) == (0, 0, ())
    assert [level.name for level in view.levels] == LEVELS
    assert [level.scope for level in view.levels] == ["session", "session", "session", "tenant"]
    for level in view.levels:
        assert (level.updates, level.drift) == (0, 0.0), level.name
        assert level.parameters > 0
        assert level.bytes == 0, level.name


@pytest.mark.parametrize("name", ["initial", "zero"])
async def test_each_level_shows_its_own_updates_and_bytes(redis_url: str, name: str) -> None:
    async with opened(redis_url, loaded(name)) as engine:
        session_id = await _session(engine)
        turns = [await say(engine, session_id, message) for message in ("My dog is called Rex.", "What is his name?")]
        view = await engine.memory(TENANT, session_id)
        stored = await stored_memory(engine, session_id)
        levels = {level.name: level for level in view.levels}
        sizes = _sizes(stored)
    assert view.version == 2
    assert {level: shown.bytes for level, shown in levels.items()} == sizes
    num_tokens = int(stored["position"])
    assert levels[TITANS].updates == num_tokens // engine.model.config.chunk_memory > 0
    assert levels[CMS_FAST].updates == 2
    assert (levels[CMS_MEDIUM].updates, levels[CMS_SLOW].updates) == (0, 0)
    # A level never written takes no bytes; one that was, does.
    assert [level.bytes > 0 for level in view.levels] == [True, True, False, False]
    assert [level.drift > 0 for level in view.levels] == [True, True, False, False]
    shown = [(level.name, level.updates, level.norm, level.drift) for level in view.levels]
    assert shown == [(level.name, level.updates, level.norm, level.drift) for level in turns[-1].memory.levels]
    assert [(point.turn, point.value) for point in view.surprise] == [
        (turn.index, turn.memory.surprise) for turn in turns
    ]


async def test_looking_changes_nothing(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        session_id = await _session(engine)
        await say(engine, session_id, "My dog is called Rex.")
        before = await engine.session(TENANT, session_id), await stored_memory(engine, session_id)
        first, again = [await engine.memory(TENANT, session_id) for _ in range(2)]
        assert first == again
        assert await engine.session(TENANT, session_id) == before[0]
        after = await stored_memory(engine, session_id)
        assert all(torch.equal(after[name], value) for name, value in before[1].items())


async def test_the_surprise_is_that_of_the_last_turns(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_TURNS", 4)
    async with opened(redis_url) as engine:
        session_id = await _session(engine)
        turns = [await say(engine, session_id, f"Number {n}.", max_tokens=1) for n in range(7)]
        view = await engine.memory(TENANT, session_id)
    assert [(point.turn, point.value) for point in view.surprise] == [
        (turn.index, turn.memory.surprise) for turn in turns[-4:]
    ]


def test_clocks_in_words() -> None:
    assert [clock_of(MODEL, level) for level in LEVELS] == [
        "every 8 tokens",
        "every turn",
        "session consolidation",
        "tenant consolidation",
    ]


def test_a_level_that_serving_does_not_teach_says_so() -> None:
    levels = (LevelConfig("cms.other", 4, "session"), LevelConfig("cms.fixed", 4, "training"))
    model = tiny_model(levels=levels)
    assert [clock_of(model, level.name) for level in levels] == ["never", "in training only"]


@torch.no_grad()
def _memory_after(num_tokens: int) -> Memory:
    memory: Memory = MODEL(random_tokens(MODEL, 1, num_tokens), initial(MODEL))[1]
    return memory


def _finished(memory: Memory | None) -> Finished:
    return Finished("woof", "stop", 11, 4, 2.5, memory, None if memory is None else {}, 0.0012345, 0.25, 1.0)


def test_a_turn_that_learned_shows_the_memory_after_it() -> None:
    session = Session("s", "", "", version=6, generation=2, num_turns=5)
    turn = make_turn(MODEL, session, initial(MODEL), TurnRequest("hello"), _finished(_memory_after(20)), "turn-1")
    assert (turn.id, turn.object, turn.session_id, turn.index) == ("turn-1", "turn", "s", 5)
    assert (turn.message, turn.reply, turn.finish_reason) == ("hello", "woof", "stop")
    assert (turn.usage.prompt_tokens, turn.usage.completion_tokens, turn.usage.total_tokens) == (11, 4, 15)
    assert (turn.memory.version, turn.memory.generation, turn.memory.learned, turn.memory.surprise) == (7, 2, True, 2.5)
    assert turn.memory.levels[0].updates == 2
    assert turn.memory.levels[0].drift > 0.0
    assert (turn.timing.queue_ms, turn.timing.first_token_ms, turn.timing.total_ms, turn.timing.commit_ms) == (
        1.234,
        250.0,
        1000.0,
        0.0,
    )


def test_a_turn_that_learned_nothing_shows_the_memory_of_before() -> None:
    session = Session("s", "", "", version=6, num_turns=5)
    turn = make_turn(MODEL, session, _memory_after(9), TurnRequest("hello", learn=False), _finished(None), "turn-1")
    assert (turn.memory.version, turn.memory.learned, turn.index) == (6, False, 5)
    assert turn.memory.levels[0].updates == 1
    assert turn.memory.levels[0].drift > 0.0


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, 0.0), (1.0, 1000.0), (0.0012344, 1.234), (1e-9, 0.0)])
def test_milliseconds_to_the_microsecond(seconds: float, shown: float) -> None:
    assert math.isclose(milliseconds(seconds), shown)

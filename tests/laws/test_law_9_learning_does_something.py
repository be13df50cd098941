"""Law 9. Learning does something: memory on beats memory off and memory reset, on recall and on loss, and an update
that moves nothing is reported as such. `cms.medium` is the worker's: tests/engine/consolidation."""

from __future__ import annotations

import asyncio
import copy
import secrets
from statistics import mean

import pytest
import torch

from engine.config import CMS_FAST, TITANS
from engine.engine import Engine
from engine.evaluation.recall import with_rates
from engine.model.hope import Hope, HopeBlock, Memory
from engine.model.learning import Lesson, surprise
from engine.model.portable import level_of, unpack_row
from engine.model.weights import fingerprint
from engine.sessions.records import Commit
from engine.sessions.snapshot import pack
from engine.tokenizer import END, Tokenizer
from tests.engines import TENANT, Recorder, loaded, opened, say, stored_memory
from tests.tiny import SHIPPED

shipped_only = pytest.mark.skipif(not SHIPPED, reason="an untrained model recalls nothing")

# Invented values: no model can guess them.
FACTS = (
    ("My dog is called Zorbit.", "What is my dog called?", "Zorbit"),
    ("My cat is called Mirella.", "What is my cat called?", "Mirella"),
    ("My name is Tarvin.", "What is my name?", "Tarvin"),
    ("I live in Karlsby.", "Where do I live?", "Karlsby"),
    ("My sister is called Oluna.", "What is my sister called?", "Oluna"),
)
# Nothing like them was in training; together they fill more than a chunk.
TEXTS = (
    "The lighthouse keeper wrote down every ship that passed, and at night he read the list aloud to the gulls.",
    "Every Tuesday the market sells smoked eel, red onions and small brass bells from the south.",
    "We meet on Friday at nine behind the old mill; bring the blue lantern and two spare batteries.",
    "The recipe needs four eggs, a pinch of saffron, and butter that has been left out since the morning.",
    "Nobody told the violinist that the concert had moved to the harbour, so she played alone to the rain.",
)
READ = (*TEXTS[:3], *(fact for fact, _, _ in FACTS[:3]))


def _at_rate(name: str, rate: float) -> tuple[Hope, Tokenizer]:
    """A model of its own whose `cms.fast` learns at this rate."""
    model, tokenizer = loaded(name)
    return with_rates(copy.deepcopy(model), [(CMS_FAST, rate)]), tokenizer


async def _told(engine: Engine, session_id: str, fact: str) -> Memory:
    """A session that was told a fact and then read on until the fact has left the open chunk."""
    await engine.create_session(TENANT, session_id, {}, False)
    for message in (fact, *TEXTS[:3]):
        turn = await say(engine, session_id, message, max_tokens=4)
        assert turn.memory.learned
    assert turn.memory.levels[0].updates > 0, "a chunk must have been filled"
    return await stored_memory(engine, session_id)


async def _with(engine: Engine, session_id: str, memory: Memory) -> None:
    """A new session with this memory; tensors that are not there are in their initial state."""
    await engine.create_session(TENANT, session_id, {}, False)
    lease = await engine.store.acquire(TENANT, session_id, secrets.token_hex(8), 1.0)
    blob = pack(memory, fingerprint=fingerprint(engine.model))
    await engine.store.commit(lease, 0, Commit(blob, (TITANS,), None, 0, None, "", secrets.token_hex(8)))
    await engine.store.release(lease)


def _answer_loss(engine: Engine, memory: Memory, question: str, answer: str) -> float:
    """Mean negative log-likelihood of the answer to a question, in nats per token."""
    asked = engine.tokenizer.read_turn(question, reply=True)
    spoken = [*engine.tokenizer.encode(f"{answer}."), END]
    counts = torch.tensor([[0.0] * len(asked) + [1.0] * len(spoken)])
    lesson = Lesson(torch.tensor([asked + spoken]), torch.tensor([len(asked + spoken)]), counts)
    return float(surprise(engine.model, unpack_row(memory, engine.model), lesson))


def _without(memory: Memory, level: str) -> Memory:
    """A stored memory with one level reset."""
    return {name: tensor for name, tensor in memory.items() if level_of(name) != level}


@shipped_only
async def test_law_9_titans_recall_what_was_told_and_reset_they_do_not(redis_url: str) -> None:
    recalled: dict[str, int] = {}
    losses: dict[str, list[float]] = {}
    async with opened(redis_url, loaded("shipped")) as engine:
        for number, (fact, question, value) in enumerate(FACTS):
            told = await _told(engine, f"told-{number}", fact)
            reset, alone = _without(told, TITANS), _without(told, CMS_FAST)
            assert told.keys() > reset.keys() > set()
            for kind, memory in (("told", told), ("alone", alone), ("reset", reset), ("fresh", {})):
                await _with(engine, f"{kind}-{number}-asked", memory)
                turn = await say(engine, f"{kind}-{number}-asked", question, max_tokens=12, learn=False)
                recalled[kind] = recalled.get(kind, 0) + (value in turn.reply)
                losses.setdefault(kind, []).append(_answer_loss(engine, memory, question, value))
    assert recalled["fresh"] == recalled["reset"] == 0
    assert recalled["told"] > len(FACTS) / 2
    assert recalled["alone"] > len(FACTS) / 2
    # In nats a token, when this was written: told 0.2, alone 0.3; reset 5.4, fresh 5.9.
    for remembers in ("told", "alone"):
        for forgot in ("fresh", "reset"):
            assert mean(losses[remembers]) < 0.5 * mean(losses[forgot])


async def _surprise(engine: Engine, session_id: str, text: str) -> float:
    return (await say(engine, session_id, text, max_tokens=0)).memory.surprise


async def _surprises(engine: Engine, kind: str) -> list[list[float]]:
    """How surprising each text is to a session that reads it for the first, second and third time."""

    async def read(number: int, text: str) -> list[float]:
        await engine.create_session(TENANT, f"{kind}-{number}", {}, False)
        return [await _surprise(engine, f"{kind}-{number}", text) for _ in range(3)]

    return await asyncio.gather(*(read(number, text) for number, text in enumerate(READ)))


@shipped_only
async def test_law_9_what_was_read_is_less_surprising_and_reset_it_is_not(redis_url: str) -> None:
    before: list[float] = []
    after: list[float] = []
    async with opened(redis_url, loaded("shipped")) as on, opened(redis_url, _at_rate("shipped", 0.0)) as off:
        first, second, third = zip(*await _surprises(on, "on"), strict=True)
        first_off, second_off, third_off = zip(*await _surprises(off, "off"), strict=True)
        for number, text in enumerate(READ):
            memory = await stored_memory(on, f"on-{number}")
            for kind, kept, found in (("kept", memory, after), ("reset", _without(memory, CMS_FAST), before)):
                await _with(on, f"on-{number}-{kind}", kept)
                found.append(await _surprise(on, f"on-{number}-{kind}", text))
    # In nats, when this was written: 5.2, 4.2, 3.2 with `cms.fast`, 5.2, 5.0, 5.0 without; after three times 2.1, and
    # 5.1 once `cms.fast` is reset. Before it has learned anything it makes no difference.
    assert first == pytest.approx(first_off, rel=1e-4)
    assert mean(second) < 0.93 * mean(second_off)
    assert mean(third) < 0.8 * mean(third_off)
    assert mean(third) < 0.8 * mean(first)
    assert mean(after) < 0.8 * mean(before)
    # `titans` alone: what is read word for word again is little of what they are trained to keep.
    assert mean(second_off) < mean(first_off) - 0.02


def _outcomes(recorder: Recorder, level: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, outcome, moved in recorder.updates:
        if name == level:
            found.setdefault(outcome, []).append(moved)
    return found


async def test_law_9_updates_that_move_something_are_reported_as_applied(redis_url: str, engine_model: str) -> None:
    recorder, session_id = Recorder(), f"moves-{engine_model}"
    async with opened(redis_url, loaded(engine_model), recorder) as engine:
        await engine.create_session(TENANT, session_id, {}, False)
        for message in TEXTS:
            turn = await say(engine, session_id, message)
        titans, fast = _outcomes(recorder, TITANS), _outcomes(recorder, CMS_FAST)
        assert titans.keys() == fast.keys() == {"applied"}
        assert min(titans["applied"] + fast["applied"]) > 0
        # Each level by its own clock: a chunk of tokens, a turn.
        updates = {level.name: level.updates for level in turn.memory.levels}
        assert len(titans["applied"]) == updates[TITANS] > 0
        assert len(fast["applied"]) == updates[CMS_FAST] == len(TEXTS)


async def test_law_9_updates_that_move_nothing_are_reported_as_skipped(redis_url: str, engine_model: str) -> None:
    recorder, session_id = Recorder(), f"still-{engine_model}"
    model, tokenizer = _at_rate(engine_model, 0.0)
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, HopeBlock)
            block.titans.eta_bias.fill_(-torch.inf)
    async with opened(redis_url, (model, tokenizer), recorder) as engine:
        await engine.create_session(TENANT, session_id, {}, False)
        for message in TEXTS:
            turn = await say(engine, session_id, message)
        titans, fast = _outcomes(recorder, TITANS), _outcomes(recorder, CMS_FAST)
        assert titans.keys() == fast.keys() == {"skipped"}
        assert set(titans["skipped"] + fast["skipped"]) == {0.0}
        assert len(fast["skipped"]) == len(TEXTS)
        assert {level.name: level.drift for level in turn.memory.levels}[CMS_FAST] == 0.0

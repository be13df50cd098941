"""Conversations straight on a model are those of the engine and its worker, session by session, level by level."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine import loop
from engine.config import CMS_FAST, CMS_MEDIUM, TITANS, EngineSettings, StoreSettings
from engine.consolidation.policy import ReplayPolicy
from engine.consolidation.session import SessionConsolidation
from engine.core import DEFAULT_TENANT, TurnCompleted, TurnRequest
from engine.engine import Engine
from engine.errors import HopeError
from engine.evaluation import conversation
from engine.evaluation.conversation import SETTINGS, Conversations, Exchange, Habits, levels_of
from engine.evaluation.silent import SilentObserver
from engine.model.baselines.common import Baseline
from engine.model.baselines.transformer import Transformer, TransformerConfig
from engine.model.hope import POSITION, Hope, Memory
from engine.model.portable import level_of, unpack_row
from engine.model.weights import fingerprint
from engine.sampler import Choice, sample
from engine.sessions.snapshot import unpack
from engine.tokenizer import END
from tests.tiny import distance, memory_distance, row_of, same_bits, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(writes_hard=False, vocab_size=TOKENIZER.vocab_size).requires_grad_(False)
# Rounding alone: pieces of other sizes, then bfloat16 (its neighbours lie 2^-8 apart), over some twenty turns.
SAME = 2**-7
TALK = (
    Exchange("The river is lovely.", "So it is."),
    Exchange("I think it is late.", "Do not be late, said the owl."),
    Exchange("No.", "Yes?"),
    Exchange("What of the train?", "It leaves at 17:45."),
)
TOLD = Exchange("My dog is called Rex.")


class GivenReplies:
    """Stands in for the engine's sampling: says the given tokens as long as there are any, then samples."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def sample(self, logits_BV: Tensor, choices: list[Choice]) -> list[int]:
        return [self.tokens.pop(0)] if self.tokens else sample(logits_BV, choices)


class OneSession:
    """A session of a real engine whose replies can be given, and its worker."""

    def __init__(self, engine: Engine, session_id: str, given: GivenReplies) -> None:
        self.engine, self.session_id, self._given = engine, session_id, given

    async def turn(self, exchange: Exchange, *, learn: bool = True) -> str:
        most = conversation.MAX_REPLY_TOKENS
        if exchange.reply is not None:
            self._given.tokens = [*TOKENIZER.encode(exchange.reply), END]
            most = len(self._given.tokens)
        request = TurnRequest(exchange.message, learn=learn, temperature=0.0, max_tokens=most)
        async for event in self.engine.turn(DEFAULT_TENANT, self.session_id, request):
            if isinstance(event, TurnCompleted):
                return event.turn.reply
        raise AssertionError("a turn ends with turn.completed")

    async def consolidate(self) -> None:
        worker = SessionConsolidation(MODEL, TOKENIZER, self.engine.store, SilentObserver(), ReplayPolicy())
        try:
            assert not await worker.next_portion(DEFAULT_TENANT, self.session_id, asyncio.Event())
        finally:
            worker.close()

    async def memory(self) -> Memory:
        _, blob = await self.engine.store.load_memory(DEFAULT_TENANT, self.session_id)
        assert blob is not None
        return unpack_row(unpack(blob, fingerprint=fingerprint(MODEL)), MODEL)


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OneSession]:
    """A session of an engine over an embedded store; replies are six tokens long at most."""
    monkeypatch.setattr(conversation, "MAX_REPLY_TOKENS", 6)
    given = GivenReplies()
    monkeypatch.setattr(loop, "sample", given.sample)
    store = StoreSettings(data_dir=tmp_path)
    engine = await Engine.open(EngineSettings(), store, SilentObserver(), (MODEL, TOKENIZER))
    session = await engine.create_session(DEFAULT_TENANT, None, {}, False)
    yield OneSession(engine, session.id, given)
    await engine.close()


def sessions(count: int = 1, habits: Habits | None = None) -> Conversations:
    return Conversations(MODEL, TOKENIZER, count, habits)


def played(habits: Habits, *exchanges: Exchange) -> Memory:
    """A session's memory after these turns."""
    alone = sessions(habits=habits)
    for exchange in exchanges:
        alone.turn([exchange])
    return alone.memory


def fresh() -> Memory:
    """A memory that has read nothing, as a session begins with it."""
    with torch.no_grad():
        return MODEL.initial_memory(1)


def of_level(memory: Memory, level: str) -> Memory:
    return {name: value for name, value in memory.items() if level_of(name) == level}


def moved(memory: Memory, level: str) -> float:
    """The distance of a level's weights from where they began."""
    start = fresh()
    weights = [name for name in of_level(memory, level) if name.endswith((".w1", ".w2"))]
    return max(distance(memory[name], start[name]) for name in weights)


async def test_a_conversation_through_the_engine_says_and_learns_the_same(served: OneSession) -> None:
    """Given replies, spoken ones that are cut, a portion of the worker, and turns behind it."""
    here = sessions(habits=Habits(worker_turns=SETTINGS.turns_per_consolidation, policy=ReplayPolicy()))
    for number in range(SETTINGS.turns_per_consolidation + 2):
        exchange = TOLD if number % 5 == 1 else TALK[number % len(TALK)]
        (reply,) = here.turn([exchange])
        assert await served.turn(exchange) == reply
        if exchange.reply is not None:
            assert reply == exchange.reply
        if number + 1 == SETTINGS.turns_per_consolidation:
            assert int(here.memory[f"{CMS_MEDIUM}.updates"]) == ReplayPolicy().num_steps
            await served.consolidate()
            assert memory_distance(here.memory, await served.memory()) < SAME
            served.engine._turns.grounds.forget(DEFAULT_TENANT, served.session_id)
    there = await served.memory()
    assert memory_distance(here.memory, there) < SAME
    assert all(moved(there, level) > 10 * SAME for level in (TITANS, CMS_FAST, CMS_MEDIUM))
    question = "What is the name of my dog?"
    assert here.ask([(0, question)]) == [await served.turn(Exchange(question), learn=False)]


def test_sessions_side_by_side_are_each_as_if_alone() -> None:
    scripts = [[TOLD, TALK[0]], [TALK[2], TOLD], [TALK[1], TALK[3]]]
    together = sessions(3, Habits(worker_turns=16, policy=ReplayPolicy()))
    replies = [together.turn([script[turn] for script in scripts]) for turn in range(2)]
    for row, script in enumerate(scripts):
        alone = sessions(habits=Habits(worker_turns=16, policy=ReplayPolicy()))
        assert [alone.turn([exchange])[0] for exchange in script] == [turn[row] for turn in replies]
        assert memory_distance(row_of(together.memory, row), alone.memory) < SAME


def test_asking_teaches_nothing_and_every_question_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "ROWS_ASKED", 2)
    both = sessions(2)
    both.turn([TOLD, TALK[3]])
    before = dict(both.memory)
    asked = [(0, "What is the name of my dog?"), (1, "Who?"), (0, "Who?"), (1, "What of the train?"), (0, "Late?")]
    replies = both.ask(asked)
    assert same_bits(both.memory, before)
    assert replies == [both.ask([one])[0] for one in asked]
    assert len(set(replies)) > 1


@pytest.mark.parametrize("level", [TITANS, CMS_FAST, CMS_MEDIUM])
def test_a_level_that_is_off_holds_nothing_and_the_others_learn(level: str) -> None:
    every = {TITANS, CMS_FAST, CMS_MEDIUM}
    turns = [TALK[0]] * SETTINGS.turns_per_consolidation
    memory = played(Habits(frozenset({level}), worker_turns=len(turns), policy=ReplayPolicy()), *turns)
    assert same_bits(of_level(memory, level), of_level(fresh(), level))
    for other in every - {level}:
        assert moved(memory, other) > SAME


def test_the_worker_takes_in_whole_portions_of_the_first_turns_alone() -> None:
    portion = SETTINGS.turns_per_consolidation

    def updates(num_turns: int, worker_turns: int) -> int:
        policy = ReplayPolicy(num_steps=1)
        memory = played(Habits(worker_turns=worker_turns, policy=policy), *[TALK[0]] * num_turns)
        return int(memory[f"{CMS_MEDIUM}.updates"])

    assert updates(portion - 1, 2 * portion) == 0
    assert updates(portion, 2 * portion) == 1
    assert updates(2 * portion, 2 * portion) == 2
    assert updates(2 * portion, portion) == 1
    assert updates(portion, 0) == 0


def test_a_portion_that_would_make_it_worse_is_not_kept() -> None:
    """As the worker: what replay taught is dropped where the turns surprise more than before (it climbs, here)."""
    turns = [TALK[3]] * SETTINGS.turns_per_consolidation
    policy = ReplayPolicy(rate_per_turn=-2.5)
    memory = played(Habits(worker_turns=len(turns), policy=policy), *turns)
    assert same_bits(memory, played(Habits(), *turns))


def test_any_model_with_a_memory_holds_conversations() -> None:
    model = another_model()
    assert levels_of(model) == ()
    talk = Conversations(model, TOKENIZER, 2)
    assert talk.turn([TALK[0], TALK[1]]) == [TALK[0].reply, TALK[1].reply]
    spoken = talk.turn([TOLD, TALK[3]])
    assert spoken[1] == TALK[3].reply
    assert spoken[0]
    assert talk.ask([(1, "Who?")]) == talk.ask([(1, "Who?")])
    assert talk.memory[POSITION].tolist() != [0, 0]


def another_model() -> Baseline:
    torch.manual_seed(0)
    shape = TransformerConfig(TOKENIZER.vocab_size, width=32, num_layers=1, num_heads=2, hidden=40, window=12)
    return Transformer(shape).eval().requires_grad_(False)


@pytest.mark.parametrize(("model", "level"), [(MODEL, "cms.fats"), (another_model(), TITANS)])
def test_a_level_that_is_not_there_cannot_be_off(model: Hope | Baseline, level: str) -> None:
    with pytest.raises(HopeError, match=level):
        Conversations(model, TOKENIZER, 1, Habits(frozenset({level})))


def test_a_message_that_the_engine_would_learn_in_parts_is_refused() -> None:
    with pytest.raises(HopeError, match="with the engine"):
        sessions().turn([Exchange("ü" * SETTINGS.learn_every_tokens, "Hm.")])

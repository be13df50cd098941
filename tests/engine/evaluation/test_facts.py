"""Facts in conversations: what is said when, what is asked, and which replies are right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.config import CMS_FAST, CMS_MEDIUM, TITANS
from engine.evaluation import facts
from engine.evaluation.conversation import Conversations, Exchange, Habits
from engine.evaluation.facts import CHANGED, TURNS_BEFORE_CHANGE, UNKNOWN, Answer, FactsPlan, Script, play
from engine.evaluation.recall import Asked, RecallPlan, measure_recall
from engine.evaluation.tables.facts import MOST_FACTS
from engine.evaluation.telling import SOURCES
from engine.training.talk import Talk
from engine.training.values import is_held_out
from tests.engine.evaluation.samples import Ears
from tests.tiny import tiny_model, tiny_tokenizer

TALK = Talk(None)
REPLY_TO = dict.fromkeys(message for runs in TALK.runs.values() for run in runs for message, _ in run)
TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(writes_hard=False, vocab_size=TOKENIZER.vocab_size).requires_grad_(False)
PLAN = FactsPlan(("everyday", "training"), num_sessions=2, facts_per_session=2, gaps=(1, 3, 21), worker_turns=16)


class Heard(Conversations):
    """Reads and speaks nothing; keeps every turn's exchanges and every question by the number of turns before it."""

    every: list[Heard]

    def __init__(self, model: object, tokenizer: object, num_sessions: int, habits: Habits | None = None) -> None:
        self.habits = habits or Habits()
        self.turns: list[list[Exchange]] = []
        self.asked: list[tuple[int, int, str]] = []
        self.every.append(self)

    def turn(self, exchanges: Sequence[Exchange]) -> list[str]:
        self.turns.append(list(exchanges))
        return [""] * len(exchanges)

    def ask(self, questions: Sequence[tuple[int, str]]) -> list[str]:
        self.asked += [(len(self.turns), session, question) for session, question in questions]
        return [f"{session} {question}" for session, question in questions]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Heard]:
    """The conversations that a run holds, facts that are kept first, then those that change."""
    monkeypatch.setattr(Heard, "every", [], raising=False)
    monkeypatch.setattr(facts, "Conversations", Heard)
    return Heard.every


def answers(off: frozenset[str] = frozenset(), plan: FactsPlan = PLAN, seed: int = 0) -> list[Answer]:
    return play(MODEL, TOKENIZER, plan, off, seed)


def answer(condition: str, reply: str, old: str | None = None) -> Answer:
    return Answer(condition, Asked(1, "My dog is called Rex.", "What is my dog called?", "Rex", reply), old)


def test_what_is_right() -> None:
    assert answer("open 1", "Rex.").right
    assert not answer("open 1", "Max.").right
    assert answer("changed 1", "Rex.", "Max").right
    assert not answer("changed 1", "Max.", "Max").right
    assert not answer("changed 1", "Rex, once Max.", "Max").right
    assert answer("changed 1", "Rex, once Max.", "Max").outdated
    assert not answer("changed 1", "No idea, you never said.", "Max").right
    assert answer(UNKNOWN, "You never told me.").right
    assert not answer(UNKNOWN, "You never told me. Rex?").right
    assert not answer(UNKNOWN, "Rex.").right


def test_told_facts_are_asked_for_after_every_gap(heard: list[Heard]) -> None:
    found = answers()
    kept = heard[0]
    told = 2 * PLAN.facts_per_session
    assert len(kept.turns) == told + PLAN.gaps[-1] - 1
    for at, turn in enumerate(kept.turns):
        telling = at < told and at % 2 == 0
        for exchange in turn:
            assert (exchange.reply is None) == telling
            assert (exchange.message in REPLY_TO) != telling
    before = [told + gap - 1 for gap in PLAN.gaps]
    assert {at for at, _, _ in kept.asked} == set(before)
    for source in PLAN.sources:
        for gap in PLAN.gaps:
            own = [one.asked for one in found if one.condition == f"{source} {gap}"]
            assert len(own) == PLAN.num_sessions * PLAN.facts_per_session
            assert all(one.gap == gap and one.value in one.told and is_held_out(one.value) for one in own)
            said = {exchange.message for turn in kept.turns[:told:2] for exchange in turn}
            assert {one.told for one in own} <= said


def test_a_reply_belongs_to_the_session_that_was_told(heard: list[Heard]) -> None:
    for one in answers():
        if one.old is None and one.condition != UNKNOWN:
            session = int(one.asked.reply.split()[0])
            told = {turn[session].message for turn in heard[0].turns[:4:2]}
            assert one.asked.told in told


def test_what_was_never_told_is_asked_once_near_twenty_turns_on(heard: list[Heard]) -> None:
    found = [one for one in answers() if one.condition == UNKNOWN]
    assert len(found) == len(PLAN.sources) * PLAN.num_sessions * PLAN.facts_per_session
    assert {one.asked.gap for one in found} == {3}
    said = {exchange.message for turn in heard[0].turns for exchange in turn}
    assert said.isdisjoint(one.asked.told for one in found)


def test_changed_facts_are_told_again_later(heard: list[Heard]) -> None:
    found = [one for one in answers() if one.condition.startswith(CHANGED)]
    changing = heard[1]
    told = 2 * PLAN.facts_per_session
    first, again = changing.turns[:told:2], changing.turns[told + TURNS_BEFORE_CHANGE :][:told:2]
    assert {at for at, _, _ in changing.asked} == {2 * told + TURNS_BEFORE_CHANGE + gap - 1 for gap in (1, 20)}
    for one in found:
        session = int(one.asked.reply.split()[0])
        assert one.old is not None
        assert any(one.old in turn[session].message for turn in first)
        assert any(one.asked.told == turn[session].message for turn in again)
        assert one.asked.value in one.asked.told
    assert [one.condition for one in found] == ["changed 1"] * 4 + ["changed 20"] * 4
    assert len(changing.turns[0]) == PLAN.num_sessions


@pytest.mark.parametrize("gaps", [(1,), (2, 7), (5, 150)])
def test_turns_are_counted_beforehand(gaps: tuple[int, ...], heard: list[Heard]) -> None:
    plan = FactsPlan(("open",), 1, 2, gaps)
    ticks: list[None] = []
    play(MODEL, TOKENIZER, plan, frozenset(), 0, lambda: ticks.append(None))
    assert len(ticks) == plan.num_turns == sum(len(one.turns) for one in heard)


@pytest.mark.parametrize(("off", "worker_turns"), [((), 16), ((TITANS,), 16), ((CMS_FAST,), 16), ((CMS_MEDIUM,), 0)])
def test_levels_that_are_off_are_off_in_every_conversation(
    off: tuple[str, ...], worker_turns: int, heard: list[Heard]
) -> None:
    answers(frozenset(off))
    assert [one.habits for one in heard] == [Habits(frozenset(off), worker_turns)] * 2


def test_a_seed_plays_the_same_and_another_does_not(heard: list[Heard]) -> None:
    assert answers() == answers()
    assert {one.asked.told for one in answers()}.isdisjoint(one.asked.told for one in answers(seed=1))


@pytest.mark.parametrize("source", ["everyday", "training", "open"])
def test_it_says_what_a_recall_run_says(source: str, checkpoint: Path, heard: list[Heard], ears: Ears) -> None:
    plan = RecallPlan(num_sessions=2, facts_per_session=3, gaps=(1, 3), relations=source)
    found = asyncio.run(measure_recall(plan, 5, checkpoint))
    own = answers(plan=FactsPlan((source,), 2, 3, (1, 3)), seed=5)
    for number, session in enumerate(sorted(ears.sessions(), key=lambda said: said[0].message)):
        said = [one.message for one in session if one.learn]
        order = sorted(range(2), key=lambda at: heard[0].turns[0][at].message)
        assert said == [turn[order[number]].message for turn in heard[0].turns]
    kept = [one.asked for one in own if one.condition.startswith(source)]

    def asked(one: Asked) -> tuple[int, str, str, str]:
        return one.gap, one.told, one.question, one.value

    assert sorted(map(asked, kept)) == sorted(map(asked, found))


@pytest.mark.parametrize("source", SOURCES)
def test_a_script_never_tells_what_it_asks_as_unknown(source: str) -> None:
    for seed in range(8):
        for num_facts in (5, MOST_FACTS):
            script = Script(str(seed), source, num_facts, TALK)
            assert {one.topic for one in script.told}.isdisjoint(one.topic for one in script.never)
            assert len(script.told) == len(script.never) == num_facts


def test_a_model_that_reads_and_speaks_answers_every_question() -> None:
    plan = FactsPlan(("everyday",), 1, 1, (1,), 0)
    found = answers(plan=plan)
    assert [one.condition for one in found] == ["everyday 1", UNKNOWN, "changed 1"]
    assert all(one.asked.reply and not one.right for one in found), "noise is never right"

"""A recall run: facts told as turns, asked after the right number of other turns, and a hit where the value is said."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW
from engine.errors import HopeError
from engine.evaluation import recall
from engine.evaluation.recall import Asked, RecallPlan, measure_recall, with_rates
from engine.evaluation.silent import SilentObserver
from engine.evaluation.telling import load_everyday
from engine.training.talk import bundled_pairs
from engine.training.values import is_held_out
from tests.engine.evaluation.samples import Ears
from tests.tiny import tiny_model

PLAN = RecallPlan(num_sessions=2, facts_per_session=2, gaps=(1, 3, 6))
TALK = {message for message, _ in bundled_pairs()}


def asked(value: str, reply: str) -> Asked:
    return Asked(1, "", "", value, reply)


@dataclass(frozen=True)
class Run:
    """A whole run: what it found, and every turn that it took."""

    found: list[Asked]
    ears: Ears


@pytest.fixture(scope="module")
def run(checkpoint: Path) -> Run:
    """`PLAN`, once."""
    ears = Ears()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "ask", ears.ask)
        return Run(asyncio.run(measure_recall(PLAN, 0, checkpoint)), ears)


@pytest.fixture
def observers(monkeypatch: pytest.MonkeyPatch) -> list[SilentObserver]:
    """Every observer that a run makes."""
    made: list[SilentObserver] = []

    class Kept(SilentObserver):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(recall, "SilentObserver", Kept)
    return made


def test_a_hit_is_the_value_in_the_reply() -> None:
    assert asked("Brenko", "Your dog is called Brenko.").recalled
    assert asked("Brenko", "brenko").recalled
    assert asked("dark olive", "It's Dark Olive, I think.").recalled
    assert not asked("Brenko", "Your dog is called Brenk.").recalled
    assert not asked("dark olive", "It's olive.").recalled
    assert not asked("Brenko", "").recalled


def test_every_fact_is_asked_at_every_gap(run: Run) -> None:
    found = run.found
    assert [one.gap for one in found] == [1, 1, 3, 3, 6, 6] * 2
    assert all(is_held_out(one.value) for one in found)
    assert all(one.value in one.told for one in found)
    assert len({one.told for one in found}) == 4
    replies = {said.message: said.turn.reply for said in run.ears.heard if not said.learn}
    for one in found:
        assert one.reply == replies[one.question]


def test_gaps_count_the_turns_between(run: Run) -> None:
    told = {one.told for one in run.found}
    for session in run.ears.sessions():
        others, gaps = 0, []
        for said in session:
            if not said.learn:
                gaps.append(others)
            elif said.message in told:
                assert not gaps, "everything is told before anything is asked"
                others = 0
            else:
                assert said.message in TALK
                others += 1
        assert gaps == [1, 1, 3, 3, 6, 6]
        assert [said.message in told for said in session[:4]] == [True, False, True, False]


def test_questions_teach_nothing(run: Run) -> None:
    for session in run.ears.sessions():
        learned = [said.turn.index for said in session if said.learn]
        assert len(learned) == 4 + 5, "two facts with talk behind each, then up to the longest gap"
        assert learned == list(range(learned[0], learned[0] + len(learned))), "no question took a place among them"


async def test_a_seed_asks_the_same_and_hears_the_same(checkpoint: Path) -> None:
    plan = RecallPlan(num_sessions=1, facts_per_session=1, gaps=(1,))
    first = await measure_recall(plan, 1, checkpoint)
    assert first[0].reply, "turns as a user's, at temperature 0"
    assert first == await measure_recall(plan, 1, checkpoint)
    assert first[0].told != (await measure_recall(plan, 2, checkpoint))[0].told


async def test_facts_come_from_the_source_of_the_plan(checkpoint: Path, ears: Ears) -> None:
    everyday = RecallPlan(num_sessions=1, facts_per_session=3, gaps=(1,), relations="everyday")
    sentences = {one.told.replace(one.value, "{v}") for one in await measure_recall(everyday, 0, checkpoint)}
    assert sentences <= {one.tell for one in load_everyday()}


def test_rates_change_the_named_levels_alone() -> None:
    before = {level.name: level for level in tiny_model().config.levels}
    after = {level.name: level for level in with_rates(tiny_model(), [(CMS_FAST, 0.0)]).config.levels}
    assert after[CMS_FAST].learning_rate == 0.0
    assert before[CMS_FAST].learning_rate > 0.0
    for name in (CMS_MEDIUM, CMS_SLOW):
        assert after[name] == before[name]
    assert with_rates(tiny_model(), []).config == tiny_model().config


@pytest.mark.parametrize(("rates", "outcome"), [((), "applied"), (((CMS_FAST, 0.0),), "skipped")])
async def test_a_level_switched_off_writes_nothing(
    rates: tuple[tuple[str, float], ...], outcome: str, checkpoint: Path, ears: Ears, observers: list[SilentObserver]
) -> None:
    await measure_recall(RecallPlan(1, 1, gaps=(1,), rates=rates), 0, checkpoint)
    (observer,) = observers
    outcomes = {name for level, name in observer.updates if level == CMS_FAST}
    assert outcomes == {outcome}


def test_a_level_that_the_model_lacks_is_not_taken_for_one_switched_off() -> None:
    with pytest.raises(HopeError, match=r"cms\.fats"):
        with_rates(tiny_model(), [("cms.fats", 0.0)])

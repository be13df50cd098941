"""A recall run: facts told as turns, asked after the right number of other turns, and a hit where the value is said."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW
from engine.errors import HopeError
from engine.evaluation import recall
from engine.evaluation.recall import Asked, RecallPlan, measure_recall, names, says_unknown, with_rates
from engine.evaluation.silent import SilentObserver
from engine.evaluation.telling import load_everyday
from engine.training.open_relations import load_open_words
from engine.training.relations import load_relations, load_small_talk
from engine.training.talk import Talk
from engine.training.values import draw_value, is_held_out
from tests.engine.evaluation.samples import Ears
from tests.tiny import tiny_model

PLAN = RecallPlan(num_sessions=2, facts_per_session=2, gaps=(1, 3, 6))
TALK = {message for runs in Talk(None).runs.values() for run in runs for message, _ in run}


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


def test_a_value_is_named_as_words_of_its_own() -> None:
    assert names("It's 5.", "5")
    assert not names("It's 15.", "5")
    assert names("Dark olive, I think.", "dark olive")
    assert not names("", "5")


QUESTION = "What is my aunt's old kettle called?"


@pytest.mark.parametrize(
    "reply",
    [
        *load_small_talk().unknown,
        *(phrase.replace("{np}", "your aunt's old kettle") for phrase in load_small_talk().unknown_about),
        "You haven’t told me that yet.",
        "I don't know",
    ],
)
def test_every_way_of_training_to_say_that_it_does_not_know_is_one(reply: str) -> None:
    assert says_unknown(reply, QUESTION)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Brenko.",
        "I don't know, Brenko?",
        "You never told me. It's Brenko.",
        "I don't know 5.",
        "You said that it is not in my memory, but at Leeds.",
        "You haven't told me about your uncle's old kettle.",
        "It's memory.",
        "You told me that.",
        "Oh, nice!",
        "Okay, I won't forget.",
        "I know that.",
        "Not at all.",
        *load_small_talk().generic_ack,
        *(answer.replace("{v}", "know") for answer in load_small_talk().generic_answer),
    ],
)
def test_what_names_something_or_denies_nothing_is_none(reply: str) -> None:
    assert not says_unknown(reply, QUESTION)


def test_no_answer_of_training_says_that_it_does_not_know() -> None:
    rng, num_answers = random.Random(0), 0
    for relation in load_relations():
        for template in (*relation.answer, *relation.ack):
            value = draw_value(rng, relation.value, held_out=True)
            for question in relation.ask:
                said, asked = (text.replace("{v}", value).replace("{e}", "Anna") for text in (template, question))
                assert not says_unknown(said, asked), said
                num_answers += 1
    for family in load_open_words().families:
        for template in family.sentences["answer"]:
            assert not says_unknown(template.replace("{v}", draw_value(rng, "word", held_out=True)), QUESTION)
    assert num_answers > 10_000


def test_of_small_talk_only_what_does_not_know_says_so() -> None:
    talk = load_small_talk()
    pairs = [(user, reply) for user, replies in talk.pairs for reply in replies]
    pairs += [pair for thread in talk.threads for pair in thread]
    found = {reply for user, reply in pairs if says_unknown(reply, user)}
    assert len(pairs) > 1000
    assert len(found) < 0.01 * len(pairs)
    for reply in found:
        assert re.search(r"can't guess|don't know|no idea|can't say|can't remember", reply), reply


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

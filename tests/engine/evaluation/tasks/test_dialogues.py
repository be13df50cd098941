"""Memory dialogues as a task: what counts, whose values they are, and that no step or test is another one's."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from engine.evaluation.examples import Examples
from engine.evaluation.tasks.dialogues import TEXT, VALUES, DialoguePlan, DialogueTask, _drill
from engine.tokenizer import ASSISTANT, END, NUM_SPECIAL, USER
from engine.training.dialogue import Stage
from engine.training.talk import Talk
from engine.training.values import is_held_out

PLAN = DialoguePlan(Stage(96, 12, 3, 0.1), num_test_rows=40)


@cache
def _task(**changes: float) -> DialogueTask:
    return DialogueTask(replace(PLAN, **changes))  # type: ignore[arg-type]


def _same(one: Examples, other: Examples) -> bool:
    return torch.equal(one.tokens_BT, other.tokens_BT) and torch.equal(one.counts_BT, other.counts_BT)


def _answers(examples: Examples) -> list[str]:
    """The text of every unbroken run of targets that count, but for those cut off at a row's end."""
    found = []
    for targets, counts in zip(examples.target_BT.tolist(), examples.counts_BT.tolist(), strict=True):
        run: list[int] = []
        for target, counted in zip(targets, counts, strict=True):
            if counted:
                run.append(target)
            elif run:
                found.append(_task().tokenizer.decode(run))
                run = []
    return found


def test_a_step_of_a_seed_is_always_the_same_and_like_no_other() -> None:
    task = _task()
    assert _same(task.training(3, 5), DialogueTask(PLAN).training(3, 5))
    others = [task.training(3, 6), task.training(4, 5), task.training(0, 0)]
    assert not any(torch.equal(task.training(3, 5).tokens_BT, other.tokens_BT) for other in others)
    assert task.training(0, 0).tokens_BT.shape == (12, 96)
    assert task.training(0, 0).tokens_BT.max() < task.vocab_size == 512


def test_tested_values_are_never_told_in_training() -> None:
    tests = dict(_task().tests(0))
    tested = _answers(tests[VALUES])
    assert len(tested) >= 20
    assert all(is_held_out(value) for value in tested)
    everything = " ".join(
        _task().tokenizer.decode(row.tolist()) for step in range(20) for row in _task().training(0, step).tokens_BT
    ).split()
    trained = {word.strip(".,?!") for word in everything}
    assert not trained & {value for value in tested if value.isdigit() and len(value) > 2}


def test_text_counts_and_special_tokens_do_not_but_for_the_end_of_a_reply() -> None:
    examples = dict(_task().tests(0))[TEXT]
    special = examples.target_BT < NUM_SPECIAL
    assert not examples.counts_BT[(examples.target_BT == USER) | (examples.target_BT == ASSISTANT)].any()
    assert examples.counts_BT[~special].all()
    assert examples.counts_BT[special & (examples.target_BT == END)].any()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_training_counts_replies_and_a_share_of_messages(share: float) -> None:
    examples = _task(message_share=share).training(0, 0)
    is_reply = torch.stack([_in_reply(row) for row in examples.tokens_BT])
    text = examples.target_BT >= NUM_SPECIAL
    assert examples.counts_BT[is_reply & text].all()
    counted = float(examples.counts_BT[~is_reply & text].float().mean())
    assert counted == pytest.approx(share, abs=0.1)


def _in_reply(tokens_T: Tensor) -> Tensor:
    """Where the next token belongs to a reply: from the assistant's token to before the end."""
    inside, found = False, []
    for token in tokens_T.tolist():
        inside = token == ASSISTANT or (inside and token not in (END, USER))
        found.append(inside)
    return torch.tensor(found)


def test_validation_is_of_training_s_values_and_of_no_training_step() -> None:
    validation = _task().validation(0)
    assert validation.tokens_BT.shape == (40, 96)
    rows = {tuple(row.tolist()) for step in range(10) for row in _task().training(0, step).tokens_BT}
    assert not rows & {tuple(row.tolist()) for row in validation.tokens_BT}
    assert not torch.equal(validation.tokens_BT, _task().validation(1).tokens_BT)
    assert not torch.equal(validation.tokens_BT, dict(_task().tests(0))[TEXT].tokens_BT)


@pytest.mark.parametrize("most_facts", [2, 5])
def test_a_drill_asks_what_it_holds_and_holds_no_more_than_it_may(most_facts: int) -> None:
    stage = Stage(0, 0, most_facts, 0.3)
    dialogue = _drill(random.Random(5), Talk(None), ("number", "date"), held_out=True)
    lines, told, num_asked, num_talk = dialogue.lines(stage), 0, 0, 0
    for _ in range(300):
        line = next(lines)
        # Two facts may be told in one message.
        assert len(dialogue.facts) <= most_facts + 1
        num_talk += line.is_talk
        if line.value is not None:
            num_asked += 1
            assert line.value in {fact.value for fact in dialogue.facts}
            assert line.reply is not None
            assert line.value in line.reply
        elif not line.is_talk:
            told += 1
            assert dialogue.facts[-1].value in line.message
            assert dialogue.facts[-1].value in (line.reply or ""), "a told value is repeated at once"
    assert num_asked > told > 20
    assert num_talk > 20
    assert all(fact.relation.value in ("number", "date") for fact in dialogue.facts)


def test_what_tells_tasks_apart_is_in_the_name() -> None:
    other = replace(PLAN, stage=replace(PLAN.stage, talk=0.4))
    names = {DialogueTask(plan).name for plan in (PLAN, other, replace(PLAN, num_test_rows=3))}
    names.add(_task(message_share=0.5).name)
    assert len(names) == 4

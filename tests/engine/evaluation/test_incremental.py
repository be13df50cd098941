"""Learning a stream in a memory and in weights: asking leaves no trace; what is forgotten shows, and what helps."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor, nn

from engine.evaluation.contestants import Shape, build
from engine.evaluation.incremental import WeightsPlan, conditions, in_memory, in_weights, nearest_centroid
from engine.evaluation.tasks.intents import Stage
from engine.model.hope import Memory
from engine.tokenizer import ASSISTANT, PAD
from tests.tiny import tiny_model

FIRST_LABEL = 40
PLAN = WeightsPlan(steps=20, rate=5e-3, batch=8)


class Slots(nn.Module):
    """Remembers which label followed a token, for the last `num_slots` labels; what it has not, it does not answer."""

    def __init__(self, num_slots: int) -> None:
        super().__init__()
        self.num_slots = num_slots

    def initial_memory(self, batch_size: int, levels: bool = True) -> Memory:
        return {"pairs": torch.zeros(batch_size, self.num_slots, 2, dtype=torch.int64)}

    def hidden(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        pairs = memory["pairs"].clone()
        x_BTD = torch.zeros(*tokens_BT.shape, 64)
        for row, tokens in enumerate(tokens_BT.tolist()):
            for at, token in enumerate(tokens):
                known = {int(key): int(label) for key, label in pairs[row].tolist()}
                x_BTD[row, at, known.get(tokens[at - 1], 0)] = 1.0
                if at > 1 and tokens[at - 1] == ASSISTANT:
                    new = torch.tensor([[tokens[at - 2], token]])
                    pairs[row] = torch.cat([pairs[row, 1:], new])
        return x_BTD, {"pairs": pairs}

    def logits(self, x_BTD: Tensor) -> Tensor:
        return x_BTD


def stream(num_tasks: int, classes: int = 2, words: int = 1) -> list[Stage]:
    """Every class has tokens of its own; its utterances are made of them."""
    rng = random.Random(0)
    stages = []
    for task in range(num_tasks):
        own = range(task * classes, (task + 1) * classes)
        one = [([10 + c * words + rng.randrange(words)], FIRST_LABEL + c) for c in own for _ in range(4)]
        stages.append(Stage(one, one))
    return stages


def test_a_memory_that_holds_all_forgets_nothing_and_one_too_small_forgets_the_oldest() -> None:
    stages = stream(3)
    assert conditions(in_memory(Slots(32), stages)) == {
        "after 1": 1.0,
        "after 2": 1.0,
        "after 3": 1.0,
        "forgetting": 0.0,
    }
    matrix = in_memory(Slots(8), stages)
    assert [row[-1] for row in matrix] == [1.0, 1.0, 1.0]
    # Unknown queries score all labels alike, and the first one is then taken: half of the first task's.
    assert matrix[2][:2] == [0.5, 0.0]
    assert conditions(matrix)["forgetting"] == pytest.approx((0.5 + 1.0) / 2)


@pytest.mark.parametrize("name", ["hope", "transformer", "gated-deltanet"])
def test_asking_leaves_no_trace(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, Shape(64, 32, 1)).eval()
    stages = stream(3)
    quiet = [dataclasses.replace(stage, asked=stage.asked[:1]) for stage in stages[:2]]
    assert in_memory(model, [*quiet, stages[2]])[2][2] == in_memory(model, stages)[2][2]
    asked = stages[2].asked[::3]
    alone = [in_memory(model, [*quiet, dataclasses.replace(stages[2], asked=[one])])[2][2] for one in asked]
    together = in_memory(model, [*quiet, dataclasses.replace(stages[2], asked=asked)])[2][2]
    assert sum(alone) / len(alone) == pytest.approx(together)


def test_levels_that_learn_answer_from_what_was_shown() -> None:
    # One that has none of the last task's labels right by chance.
    model = tiny_model(3, writes_hard=False)
    stages = [Stage([*stage.shown] * 6, stage.asked) for stage in stream(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    still, taught = in_memory(model, stages), in_memory(model, stages, {"cms.fast": 2.0, "cms.medium": 2.0})
    assert taught[1][1] > still[1][1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_forget_what_is_not_rehearsed_and_springs_hold_some_of_it() -> None:
    torch.manual_seed(0)
    model = build("transformer", Shape(64, 32, 1)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stages = stream(4)
    plain = in_weights(model, stages, PLAN, 0)
    elastic = in_weights(model, stages, dataclasses.replace(PLAN, strength=1e4), 0)
    joint = in_weights(model, stages, dataclasses.replace(PLAN, rehearse=True), 0)
    assert plain[3][3] == joint[3][3] == 1.0
    found = [conditions(matrix) for matrix in (plain, elastic, joint)]
    assert found[0]["forgetting"] > found[1]["forgetting"] > found[2]["forgetting"] - 1e-9
    assert found[2]["after 4"] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert in_weights(model, stages, PLAN, 0) == plain, "a seed is a run"


def test_the_nearest_centroid_knows_classes_by_their_tokens() -> None:
    stages = stream(3)
    assert conditions(nearest_centroid(stages))["after 3"] == 1.0
    strange = Stage(stages[0].shown, [([PAD], FIRST_LABEL), ([PAD], FIRST_LABEL + 1)])
    assert nearest_centroid([strange]) == [[0.5]]


def test_conditions_of_one_and_of_many_tasks() -> None:
    assert conditions([[0.25]]) == {"after 1": 0.25}
    matrix = [[1.0], [0.5, 0.5], [0.0, 0.25, 1.0]]
    assert conditions(matrix) == {"after 1": 1.0, "after 2": 0.5, "after 3": 1.25 / 3, "forgetting": (1.0 + 0.25) / 2}

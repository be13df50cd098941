"""The loss is the model's own, weighted; guesses are its most likely tokens; both begin where they are told to."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.model.hope import Hope
from engine.training.objective import Objective
from tests.tiny import memory_distance, random_tokens, same_bits, tiny_model


@pytest.fixture(scope="module")
def model() -> Hope:
    """Not to be changed."""
    return tiny_model()


def test_the_loss_is_the_weighted_sum_over_what_was_chosen(model: Hope) -> None:
    tokens_BT, target_BT = random_tokens(model, 2, 20), random_tokens(model, 2, 20, seed=1)
    weight_BT = torch.rand(2, 20)
    loss, after = Objective(model)(tokens_BT, target_BT, weight_BT, torch.tensor([3, 25, 39]), None)
    logits, expected_after = model(tokens_BT, model.initial_memory(2, levels=False))
    losses_BT = functional.cross_entropy(logits.transpose(1, 2), target_BT, reduction="none")
    expected = sum(losses_BT[row, at] * weight_BT[row, at] for row, at in ((0, 3), (1, 5), (1, 19)))
    assert torch.allclose(loss, torch.as_tensor(expected))
    assert same_bits(after, expected_after)


def test_rows_without_a_chosen_target_have_a_gradient_of_zero() -> None:
    model = tiny_model()
    tokens_BT = random_tokens(model, 2, 20)
    loss, _ = Objective(model)(tokens_BT, tokens_BT, torch.ones(2, 20), torch.tensor([], dtype=torch.int64), None)
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_what_rows_remember_is_what_they_begin_with(model: Hope) -> None:
    objective = Objective(model)
    tokens_BT = random_tokens(model, 2, 20)
    whole, expected = objective.guess(tokens_BT, None)
    first, memory = objective.guess(tokens_BT[:, :11], None)
    second, after = objective.guess(tokens_BT[:, 11:], memory)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(whole, model(tokens_BT, model.initial_memory(2))[0].argmax(-1))
    assert memory_distance(after, expected) < 1e-4
    assert after["position"].tolist() == [20, 20]


def test_a_blank_memory_is_one_that_has_read_nothing(model: Hope) -> None:
    objective, pieces = Objective(model), Objective(model)
    pieces.blank = model.initial_memory(1, levels=False)
    assert same_bits(pieces.initial_memory(3), objective.initial_memory(3))


def test_there_are_two_precisions(model: Hope) -> None:
    with pytest.raises(InvalidRequest, match="float32, bfloat16, not 'float64'"):
        Objective(model, "float64")

"""Elastic weight consolidation: Fisher information and penalty by hand, and a spring that holds what mattered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.training.elastic import Elastic, consolidate, diagonal_fisher


def two_weights(first: float, second: float) -> nn.Linear:
    """w1 x1 + w2 x2."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[first, second]]))
    return model


def loss_of(model: nn.Module, inputs: list[float], target: float) -> Tensor:
    """Half the squared error of one example: its gradient is error * input."""
    out: Tensor = model(torch.tensor(inputs))
    return 0.5 * (out - target).square().squeeze()


def test_the_fisher_information_is_the_mean_of_squared_gradients_and_no_square_of_their_mean() -> None:
    model = two_weights(1.0, 2.0)
    # Errors 1 and -1: the gradients (1, 0) and (-1, -2) have the mean (0, -1).
    losses = [loss_of(model, [1.0, 0.0], 0.0), loss_of(model, [1.0, 2.0], 6.0)]
    fisher = diagonal_fisher(model, losses)
    torch.testing.assert_close(fisher["weight"], torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="examples"):
        diagonal_fisher(model, [])


def test_the_penalty_is_half_of_strength_times_importance_times_the_squared_way() -> None:
    spring = Elastic({"weight": torch.tensor([[1.0, 2.0]])}, {"weight": torch.tensor([[3.0, 0.5]])})
    model = two_weights(2.0, 4.0)
    penalty = spring.penalty(model, strength=10.0)
    assert float(penalty.detach()) == pytest.approx(0.5 * 10 * (3 * 1 + 0.5 * 4))
    (gradient,) = torch.autograd.grad(penalty, [model.weight])
    torch.testing.assert_close(gradient, torch.tensor([[30.0, 10.0]]))
    assert float(spring.penalty(two_weights(1.0, 2.0), 10.0).detach()) == 0.0
    with pytest.raises(KeyError):
        spring.penalty(nn.Sequential(), 1.0)


def test_importance_is_summed_over_tasks_and_the_anchor_is_the_latest() -> None:
    model = two_weights(1.0, 0.0)
    first = consolidate(None, model, [loss_of(model, [1.0, 0.0], 0.0)])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 3.0]]))
    second = consolidate(first, model, [loss_of(model, [0.0, 1.0], 1.0)])
    torch.testing.assert_close(second.importance["weight"], torch.tensor([[1.0, 4.0]]))
    torch.testing.assert_close(second.anchor["weight"], torch.tensor([[1.0, 3.0]]))
    half = consolidate(first, model, [loss_of(model, [0.0, 1.0], 1.0)], keep=0.5)
    torch.testing.assert_close(half.importance["weight"], torch.tensor([[0.5, 4.0]]))
    with torch.no_grad():
        model.weight.zero_()
    assert float(second.anchor["weight"].sum()) == 4.0, "an anchor does not follow the weights"


@pytest.mark.parametrize(("strength", "kept"), [(0.0, False), (100.0, True)])
def test_a_spring_keeps_what_the_first_task_needs_and_learns_the_second_with_the_rest(
    strength: float, kept: bool
) -> None:
    # The first task reads x1 alone and is done at w1 = 1; the second wants w1 + w2 = 4.
    model = two_weights(1.0, 0.0)
    spring = consolidate(None, model, [loss_of(model, [1.0, 0.0], 0.0)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2000):
        optimizer.zero_grad()
        (loss_of(model, [1.0, 1.0], 4.0) + spring.penalty(model, strength)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss_of(model, [1.0, 1.0], 4.0).detach()) < 1e-3
    assert (abs(float(model.weight.detach()[0, 0]) - 1.0) < 0.05) is kept

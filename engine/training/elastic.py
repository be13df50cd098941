"""Elastic weight consolidation: what earlier tasks taught is held by a spring on every weight that mattered to it.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (PNAS 2017), eq. 3, with one spring for
all tasks so far: importances are summed, and the anchor is where the latest task left the weights (Huszar, PNAS
2018; Schwarz et al., "Progress & Compress", 2018). Knows no tasks and no models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Elastic:
    """A spring on every weight.

    Attributes:
        anchor: parameter name -> the weights that the latest task left.
        importance: parameter name -> diagonal Fisher information, summed over tasks, of the anchor's shape.
    """

    anchor: dict[str, Tensor]
    importance: dict[str, Tensor]

    def penalty(self, model: nn.Module, strength: float) -> Tensor:
        """strength / 2 * sum of importance * (weight - anchor)^2, a scalar in nats (Kirkpatrick 2017, eq. 3).

        Raises:
            KeyError: the model has not the parameters the spring was made for.
        """
        weights = dict(model.named_parameters())
        pulls = [
            (self.importance[name] * (weights[name] - anchor).square()).sum() for name, anchor in self.anchor.items()
        ]
        return 0.5 * strength * torch.stack(pulls).sum()


def consolidate(before: Elastic | None, model: nn.Module, losses: Iterable[Tensor], keep: float = 1.0) -> Elastic:
    """The spring after one more task: anchored at the weights as they are now.

    Args:
        before: the spring of the tasks before, None at the first.
        losses: the negative log-likelihood of one example each, with its graph; see `diagonal_fisher`.
        keep: share of the earlier tasks' importance that stays (1 sums; Schwarz 2018 has less).
    """
    importance = diagonal_fisher(model, losses)
    if before is not None:
        importance = {name: found + keep * before.importance[name] for name, found in importance.items()}
    anchor = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return Elastic(anchor, importance)


def diagonal_fisher(model: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of each weight, by parameter name.

    Every loss is of one example: the square of a mean gradient is no mean of squares. With labels drawn from the
    model's own prediction this is the Fisher information, with the data's labels the empirical one.

    Raises:
        ValueError: there are no losses.
    """
    weights = dict(model.named_parameters())
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    num_examples = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
        num_examples += 1
    if not num_examples:
        raise ValueError("importance needs examples")
    return {name: summed / num_examples for name, summed in total.items()}

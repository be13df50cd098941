"""Contestants that begin ready to recall: tables of synthetic recall have a thousand steps, too few to get there first.

All get wider embeddings, whose rows an answer must stand out by. What is trained and how is the same. Knows no tasks.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from engine.evaluation.contestants import Shape, build

# Standard deviation 0.02 becomes 0.1.
EMBEDDING_SCALE = 5.0

ModelT = TypeVar("ModelT", bound=nn.Module)


def build_eager(name: str, shape: Shape) -> nn.Module:
    """A contestant as `contestants.build` makes it, with another beginning.

    Raises:
        InvalidRequest: nobody has this name, or it cannot be built at this size.
    """
    return eager(build(name, shape))


def eager(model: ModelT) -> ModelT:
    """The same freshly initialised model, its embeddings wider."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Embedding):
                part.weight.mul_(EMBEDDING_SCALE)
    return model

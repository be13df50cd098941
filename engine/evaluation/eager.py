"""Contestants that begin ready to recall: tables of synthetic recall have a thousand steps, too few to get there first.

All get wider embeddings, whose rows an answer must stand out by; Hope's and Titans' memories begin with steps as large
as a Gated DeltaNet's. What is trained and how is the same. Knows no tasks.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.evaluation.contestants import Shape, build
from engine.model.self_modifying import SelfModifyingTitans

# Standard deviation 0.02 becomes 0.1; eta of 0.03 to 0.2 becomes 0.5 to 0.9.
EMBEDDING_SCALE, ETA_SHIFT = 5.0, 3.5


def build_eager(name: str, shape: Shape) -> nn.Module:
    """A contestant as `contestants.build` makes it, with another beginning.

    Raises:
        InvalidRequest: nobody has this name, or it cannot be built at this size.
    """
    model = build(name, shape)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Embedding):
                part.weight.mul_(EMBEDDING_SCALE)
            elif isinstance(part, SelfModifyingTitans):
                part.eta_bias.add_(ETA_SHIFT)
    return model

"""Contestants that begin ready to recall: wider embeddings for all, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.evaluation.contestants import CONTESTANTS, Shape, build, num_parameters
from engine.evaluation.eager import EMBEDDING_SCALE, build_eager

SHAPE = Shape(25, width=32, num_layers=1, num_heads=1)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A contestant as it is elsewhere, and here."""
    torch.manual_seed(0)
    plain = build(name, SHAPE)
    torch.manual_seed(0)
    return plain, build_eager(name, SHAPE)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_only_embeddings_differ(name: str) -> None:
    plain, eager = pair(name)
    assert num_parameters(plain) == num_parameters(eager)
    for (key, before), after in zip(plain.named_parameters(), eager.parameters(), strict=True):
        if key == "embedding.weight":
            torch.testing.assert_close(after, before * EMBEDDING_SCALE)
        else:
            assert torch.equal(before, after), key

"""Contestants that begin ready to recall: wider embeddings for all, larger first steps where memories have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.evaluation.contestants import CONTESTANTS, Shape, build, num_parameters
from engine.evaluation.eager import EMBEDDING_SCALE, ETA_SHIFT, build_eager

SHAPE = Shape(25, width=32, num_layers=1, num_heads=1)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A contestant as it is elsewhere, and here."""
    torch.manual_seed(0)
    plain = build(name, SHAPE)
    torch.manual_seed(0)
    return plain, build_eager(name, SHAPE)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_only_embeddings_and_first_steps_differ(name: str) -> None:
    plain, eager = pair(name)
    assert num_parameters(plain) == num_parameters(eager)
    for (key, before), after in zip(plain.named_parameters(), eager.parameters(), strict=True):
        if key == "embedding.weight":
            torch.testing.assert_close(after, before * EMBEDDING_SCALE)
        elif key.endswith("eta_bias"):
            torch.testing.assert_close(after, before + ETA_SHIFT)
        else:
            assert torch.equal(before, after), key


def test_hope_and_titans_have_steps_to_change() -> None:
    for name in ("hope", "titans"):
        assert any(key.endswith("eta_bias") for key, _ in pair(name)[1].named_parameters())

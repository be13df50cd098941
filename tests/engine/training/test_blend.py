"""Blending: both ends are the two checkpoints, the middle is the mean, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import InvalidRequest
from engine.model.hope import Hope
from engine.model.weights import load_checkpoint
from engine.training.blend import blend, share_of
from tests.tiny import same_bits, tiny_model, write_tiny_checkpoint


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path, seed=1)


def own(tmp_path: Path) -> Hope:
    return load_checkpoint(write_tiny_checkpoint(tmp_path / "own", seed=2))[0]


def test_all_of_its_own_changes_nothing_and_none_is_the_other(other: Path, tmp_path: Path) -> None:
    model, before = own(tmp_path), own(tmp_path).state_dict()
    blend(model, other, 1.0)
    assert same_bits(model.state_dict(), before)
    blend(model, other, 0.0)
    assert same_bits(model.state_dict(), load_checkpoint(other)[0].state_dict())


def test_a_quarter_of_its_own_is_a_quarter_of_the_way_from_the_other(other: Path, tmp_path: Path) -> None:
    model, before = own(tmp_path), own(tmp_path).state_dict()
    theirs = load_checkpoint(other)[0].state_dict()
    blend(model, other, 0.25)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, 0.25 * before[name] + 0.75 * theirs[name])


@pytest.mark.parametrize("text", ["-0.1", "1.1", "half", "nan"])
def test_a_share_is_between_none_and_all(text: str) -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        share_of(text)


def test_a_checkpoint_of_another_shape_is_refused(other: Path) -> None:
    with pytest.raises(InvalidRequest, match="another shape"):
        blend(tiny_model(2, vocab_size=400), other, 0.5)

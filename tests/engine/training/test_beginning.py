"""A run begins with another checkpoint's weights, and what it has not keeps its own beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from engine.errors import InvalidRequest
from engine.model.weights import load_checkpoint
from engine.training.beginning import retain_longer, start_from
from tests.tiny import same_bits, tiny_model, write_tiny_checkpoint


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_a_run_can_start_from_another_checkpoint(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, seed=4)
    there, tokenizer = load_checkpoint(folder)
    model = tiny_model(seed=5, vocab_size=tokenizer.vocab_size)
    assert not same_bits(weights(model), weights(there))
    start_from(model, folder)
    assert same_bits(weights(model), weights(there))


def test_what_the_other_checkpoint_has_not_keeps_its_beginning(tmp_path: Path) -> None:
    folder = tmp_path / "apart"
    apart, tokenizer = load_checkpoint(write_tiny_checkpoint(folder, seed=4, head_mixing="none"))
    model = tiny_model(seed=5, vocab_size=tokenizer.vocab_size)
    start_from(model, folder)
    new = {name for name, _ in model.named_parameters()} - {name for name, _ in apart.named_parameters()}
    assert new == {f"blocks.{layer}.titans.mix.{name}.weight" for layer in (0, 1) for name in ("query", "key", "value")}
    assert same_bits({name: value for name, value in weights(model).items() if name not in new}, weights(apart))
    untouched = weights(tiny_model(seed=5, vocab_size=tokenizer.vocab_size))
    assert same_bits({name: weights(model)[name] for name in new}, {name: untouched[name] for name in new})


def test_a_checkpoint_of_another_shape_is_no_start(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    with pytest.raises(InvalidRequest, match="another shape"):
        start_from(tiny_model(width=64), tmp_path)


def test_memories_are_retained_longer_in_every_layer_and_nothing_else_moves() -> None:
    model, before = tiny_model(), weights(tiny_model())
    retain_longer(model, (0.0, 1.5))
    moved = {name for name, value in weights(model).items() if not value.equal(before[name])}
    assert moved == {f"blocks.{layer}.titans.alpha_bias" for layer in (0, 1)}
    for name in moved:
        assert (weights(model)[name] - before[name]).tolist() == pytest.approx([0, 1.5])


def test_what_does_not_forget_cannot_retain_longer() -> None:
    with pytest.raises(InvalidRequest, match="2 numbers for 0 heads"):
        retain_longer(tiny_model(retention=False), (0.0, 1.0))

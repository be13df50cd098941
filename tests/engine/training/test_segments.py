"""What training does to a chunk of a layer changes how it is computed, and not what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.config import ATTENTION
from engine.model.grid import Piece
from engine.model.hope import Hope, HopeBlock
from engine.model.projections import State
from engine.training.objective import Objective
from engine.training.segments import checkpoint_segments, compile_segments, keep_segments_in_float32
from engine.training.throughput import KeptBytes
from tests.tiny import distance, random_tokens, same_bits, tiny_model


def loss_of(model: Hope, precision: str = "float32", num_tokens: int = 41) -> tuple[Tensor, State, int]:
    """Loss of some rows, what they remember, and what was kept for the way back."""
    objective = Objective(model, precision)
    tokens_BT = random_tokens(model, 3, num_tokens)
    places_N = torch.arange(tokens_BT.numel())
    with KeptBytes(objective) as kept:
        loss, after = objective(tokens_BT, tokens_BT.roll(-1, 1), torch.ones(tokens_BT.shape), places_N, None)
    return loss / len(places_N), after, kept.total


def gradients(model: Hope, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_checkpointing_changes_no_bit_and_keeps_less() -> None:
    plain, again = tiny_model(), tiny_model()
    checkpoint_segments(again)
    loss, after, kept = loss_of(plain, num_tokens=160)
    same_loss, same_after, kept_of_it = loss_of(again, num_tokens=160)
    assert torch.equal(loss, same_loss)
    assert same_bits(after, same_after)
    assert same_bits(gradients(plain, loss), gradients(again, same_loss))
    assert kept_of_it < 0.6 * kept


def test_without_gradients_nothing_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    checkpoint_segments(model)
    monkeypatch.setattr("engine.training.segments.checkpoint", None)
    with torch.no_grad():
        loss_of(model)
    with pytest.raises(TypeError):
        loss_of(model)


def test_memories_stay_in_float32_where_dense_products_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    seen: set[torch.dtype] = set()
    for block in model.blocks:
        assert isinstance(block, HopeBlock)
        segment = block.titans.segment

        def spied(state: State, parts: State, piece: Piece, segment: object = segment) -> tuple[Tensor, State]:
            seen.update(value.dtype for value in (*state.values(), *parts.values()))
            seen.add((parts["key_x"].flatten(2) @ parts["key_x"].flatten(2).mT).dtype)
            assert callable(segment)
            y, after = segment(state, parts, piece)
            return y, after

        monkeypatch.setattr(block.titans, "segment", spied)
    keep_segments_in_float32(model)
    loss, after, _ = loss_of(model, "bfloat16")
    assert seen == {torch.float32}
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.float32}
    in_float32, _, _ = loss_of(model)
    assert loss.dtype == torch.float32
    assert 0 < distance(loss, in_float32) < 0.02
    assert all(value.dtype == torch.float32 for value in gradients(model, loss).values())


def test_all_of_it_together_learns_the_same() -> None:
    plain, model = tiny_model(writes_hard=False), tiny_model(writes_hard=False)
    keep_segments_in_float32(model)
    expected = gradients(model, loss_of(model, "bfloat16")[0])
    model.zero_grad()
    checkpoint_segments(model)
    assert same_bits(gradients(model, loss_of(model, "bfloat16")[0]), expected)
    exact = gradients(plain, loss_of(plain)[0])
    assert max(distance(expected[name], value) for name, value in exact.items() if value.norm() > 1e-4) < 0.2


def test_what_is_compiled_is_the_segment_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_nothing(function: object, *, dynamic: bool) -> object:
        compiled.append((function, dynamic))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    model = tiny_model()
    segments = [block.titans.segment for block in model.blocks if isinstance(block, HopeBlock)]
    compile_segments(model)
    assert compiled == [(segment, False) for segment in segments]


def test_a_model_without_titans_is_left_as_it_is() -> None:
    model = tiny_model(mixer=ATTENTION)
    for change in (compile_segments, keep_segments_in_float32, checkpoint_segments):
        change(model)
    assert torch.isfinite(loss_of(model)[0])

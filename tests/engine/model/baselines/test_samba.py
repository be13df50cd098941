"""The state space of Samba: closed form against the recurrence, and against the library's Mamba-2; what alternates."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from engine.errors import InvalidRequest
from engine.model.baselines.common import Layer, Reading
from engine.model.baselines.samba import SambaConfig, StateSpace, build, state_space
from engine.model.baselines.transformer import Attention
from tests.engine.model.baselines.models import VOCAB, WINDOW, read, some_tokens, tiny
from tests.tiny import distance

ROWS, HEADS, WIDE, STATE = 2, 3, 5, 7


def _inputs(num_tokens: int, forget: float) -> tuple[Tensor, ...]:
    """C, B, x, log decay and the state before; `forget` is the greatest decay, in nats a token."""
    generator = torch.Generator().manual_seed(num_tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    decay = -forget * draw(ROWS, num_tokens, HEADS).sigmoid()
    out_of, into = draw(ROWS, num_tokens, STATE), draw(ROWS, num_tokens, STATE)
    return out_of, into, draw(ROWS, num_tokens, HEADS, WIDE), decay, draw(ROWS, HEADS, STATE, WIDE)


def _recurrence(out_of: Tensor, into: Tensor, given: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = e^{log decay} h_{t-1} + B_t x_t^T and C_t h_t, a token at a time."""
    out = []
    for t in range(given.shape[1]):
        state = decay[:, t, :, None, None].exp() * state + into[:, t, None, :, None] * given[:, t, :, None, :]
        out.append((out_of[:, t, None, :, None] * state).sum(2))
    return torch.stack(out, 1), state


@pytest.mark.parametrize("forget", [0.01, 2.0, 40.0])
@pytest.mark.parametrize(("num_tokens", "chunk"), [(1, 8), (7, 8), (8, 8), (50, 8), (50, 64), (130, 64)])
def test_the_closed_form_is_the_recurrence(num_tokens: int, chunk: int, forget: float) -> None:
    out_of, into, given, decay, before = _inputs(num_tokens, forget)
    expected, expected_state = _recurrence(out_of, into, given, decay, before)
    found, state = state_space(out_of, into, given, decay, before, chunk)
    assert distance(found, expected) <= 1e-9
    assert distance(state, expected_state) <= 1e-9


@pytest.mark.parametrize("expansion", [1, 2])
def test_the_library_s_layer_computes_the_same(expansion: int) -> None:
    library = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    configs = importlib.import_module("transformers.models.mamba2.configuration_mamba2")
    torch.manual_seed(0)
    mixer = StateSpace(SambaConfig(VOCAB, 32, 1, 2, 8, expansion=expansion, state_size=12, chunk=8))
    with torch.no_grad():
        mixer.norm.gain.copy_(torch.linspace(0.5, 1.5, 32 * expansion))
        mixer.skip_H.copy_(torch.linspace(-1.0, 1.0, 2 * expansion))
    config = configs.Mamba2Config(
        hidden_size=32,
        expand=expansion,
        num_heads=2 * expansion,
        head_dim=16,
        state_size=12,
        n_groups=1,
        conv_kernel=4,
        use_conv_bias=False,
        use_bias=False,
        chunk_size=16,
        layer_norm_epsilon=1e-5,
        num_hidden_layers=1,
    )
    theirs = library.Mamba2Mixer(config, 0).eval()
    theirs.load_state_dict(_weights(mixer))
    x_BTD = torch.randn(2, 75, 32)
    with torch.no_grad():
        found, _ = mixer(x_BTD, mixer.initial_state(2), Reading.of(torch.zeros(2, dtype=torch.int64), None, 75))
        assert distance(found, theirs(x_BTD)) <= 1e-4


def _weights(mixer: StateSpace) -> dict[str, Tensor]:
    """The layer's weights under the library's names."""
    found = {
        "in_proj.weight": torch.cat([mixer.gate.weight, mixer.input_into_out_of.weight, mixer.step.weight]),
        "conv1d.weight": mixer.filters.weight_WF11D[:, 0, 0, 0].T.unsqueeze(1),
        "dt_bias": mixer.step_bias_H,
        "A_log": mixer.decay_log_H,
        "D": mixer.skip_H,
        "norm.weight": mixer.norm.gain,
        "out_proj.weight": mixer.out.weight,
    }
    return {name: weight.detach() for name, weight in found.items()}


def test_state_space_and_window_take_turns() -> None:
    model = build(VOCAB, 32, 5, 2)
    kinds = [type(layer.mixer) for layer in model.layers if isinstance(layer, Layer)]
    assert kinds == [StateSpace, Attention, StateSpace, Attention, StateSpace]
    assert {layer.mixer.window for layer in model.layers if isinstance(layer.mixer, Attention)} == {512}


def test_the_state_does_not_grow() -> None:
    model = tiny("samba")
    memory = model.initial_memory(1)
    shapes = {name: value.shape for name, value in memory.items()}
    assert shapes["cache.1.key"] == (1, 2, WINDOW - 1, 16)
    _, memory = read(model, some_tokens(1, 3000), [1500, 1500], memory)
    assert {name: value.shape for name, value in memory.items()} == shapes
    for value in memory.values():
        assert bool(value.isfinite().all())


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least"):
        SambaConfig(VOCAB, 32, 1, 2, 8, window=1)

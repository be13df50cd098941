"""The gated delta rule: closed form against the recurrence as printed, and against the library's own two."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from engine.errors import InvalidRequest
from engine.model.baselines.common import Reading
from engine.model.baselines.gated_deltanet import GatedDelta, GatedDeltaNet, GatedDeltaNetConfig, gated_delta
from engine.model.hope import POSITION
from engine.model.layers import unit
from tests.engine.model.baselines.models import VOCAB, read, some_tokens
from tests.tiny import distance

ROWS, HEADS, KEY, VALUE = 2, 3, 5, 7


def _inputs(num_tokens: int, forget: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k, v, beta, log decay and the state before; `forget` is the greatest decay, in nats a token."""
    generator = torch.Generator().manual_seed(num_tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    query, key = unit(draw(ROWS, HEADS, num_tokens, KEY)), unit(draw(ROWS, HEADS, num_tokens, KEY))
    beta, decay = draw(ROWS, HEADS, num_tokens).sigmoid(), -forget * draw(ROWS, HEADS, num_tokens).sigmoid()
    return query, key, draw(ROWS, HEADS, num_tokens, VALUE), beta, decay, draw(ROWS, HEADS, KEY, VALUE)


def _recurrence(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """S_t = alpha_t S_{t-1} (I - beta_t k k^T) + beta_t v k^T, a token at a time."""
    s_BHVK, out = state.transpose(-1, -2), []
    for t in range(query.shape[2]):
        k, v, b = key[:, :, t], value[:, :, t], beta[:, :, t, None, None]
        erased = torch.eye(KEY, dtype=k.dtype) - b * k.unsqueeze(-1) * k.unsqueeze(-2)
        s_BHVK = log_decay[:, :, t, None, None].exp() * s_BHVK @ erased + b * v.unsqueeze(-1) * k.unsqueeze(-2)
        out.append((s_BHVK @ query[:, :, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, 2), s_BHVK.transpose(-1, -2)


@pytest.mark.parametrize("forget", [0.01, 2.0, 40.0])
@pytest.mark.parametrize(("num_tokens", "chunk"), [(1, 8), (7, 8), (8, 8), (50, 8), (50, 64), (130, 64)])
def test_the_closed_form_is_the_recurrence(num_tokens: int, chunk: int, forget: float) -> None:
    query, key, value, beta, decay, before = _inputs(num_tokens, forget)
    expected, expected_state = _recurrence(query, key, value, beta, decay, before)
    found, state = gated_delta(query, key, value, beta, decay, before, chunk)
    assert distance(found, expected) <= 1e-9
    assert distance(state, expected_state) <= 1e-9


@pytest.mark.parametrize("rule", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_the_library_computes_the_same(rule: str) -> None:
    library = importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    query, key, value, beta, log_decay, state = _inputs(100, 1.0, torch.float32)
    found, after = gated_delta(query, key, value, beta, log_decay, state, 16)
    expected, expected_after = getattr(library, rule)(
        # The library scales its queries down.
        *(x.transpose(1, 2) for x in (query * KEY**0.5, key, value)),
        g=log_decay.transpose(1, 2),
        beta=beta.transpose(1, 2),
        initial_state=state,
        output_final_state=True,
    )
    assert distance(found, expected.transpose(1, 2)) <= 1e-4
    assert distance(after, expected_after) <= 1e-4


@pytest.mark.parametrize("expansion", [1, 2])
def test_the_library_s_layer_computes_the_same(expansion: int) -> None:
    library = importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    configs = importlib.import_module("transformers.models.qwen3_next.configuration_qwen3_next")
    torch.manual_seed(0)
    mixer = GatedDelta(GatedDeltaNetConfig(VOCAB, 32, 1, 2, 8, value_expansion=expansion, chunk=8))
    with torch.no_grad():
        mixer.read_norm.gain.copy_(torch.linspace(0.5, 1.5, 16 * expansion))
    config = configs.Qwen3NextConfig(
        hidden_size=32,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16 * expansion,
        linear_conv_kernel_dim=4,
        # The library divides its queries by the root of the key width (4), and so what is normed.
        rms_norm_eps=1e-5 / 16,
        num_hidden_layers=1,
    )
    theirs = library.Qwen3NextGatedDeltaNet(config, 0).eval()
    theirs.load_state_dict(_weights(mixer))
    x_BTD = torch.randn(2, 75, 32)
    with torch.no_grad():
        found, _ = mixer(x_BTD, mixer.initial_state(2), Reading.of(torch.zeros(2, dtype=torch.int64), None, 75))
        assert distance(found, theirs(x_BTD)) <= 1e-4


def _weights(mixer: GatedDelta) -> dict[str, Tensor]:
    """The layer's weights under the library's names; it keeps the rows of one head together."""
    heads, width, values = mixer.config.num_heads, mixer.config.width, mixer.gate.weight.shape[0]
    query, key, value = mixer.query_key_value.weight.split([width, width, values])  # type: ignore[no-untyped-call]
    by_head = [x.view(heads, -1, width) for x in (query, key, value, mixer.gate.weight)]
    found = {
        "in_proj_qkvz.weight": torch.cat(by_head, 1).flatten(0, 1),
        "in_proj_ba.weight": torch.stack([mixer.write.weight, mixer.step.weight], 1).flatten(0, 1),
        "conv1d.weight": mixer.filters.weight_WF11D[:, 0, 0, 0].T.unsqueeze(1),
        "dt_bias": mixer.step_bias_H,
        "A_log": mixer.decay_log_H,
        "norm.weight": mixer.read_norm.gain,
        "out_proj.weight": mixer.out.weight,
    }
    return {name: weight.detach() for name, weight in found.items()}


def test_what_does_not_fade_is_recalled_exactly() -> None:
    # Orthogonal keys, beta 1, no decay: an associative memory. Written again, a key holds its new value only.
    key = torch.eye(KEY).expand(1, 1, KEY, KEY)
    first, second = torch.randn(2, 1, 1, KEY, VALUE)
    one, none = torch.ones(1, 1, KEY), torch.zeros(1, 1, KEY)
    _, state = gated_delta(key, key, first, one, none, torch.zeros(1, 1, KEY, VALUE), 4)
    assert torch.allclose(key @ state, first, atol=1e-6)
    _, state = gated_delta(key, key, second, one, none, state, 4)
    assert torch.allclose(key @ state, second, atol=1e-6)


def test_the_state_does_not_grow() -> None:
    model = GatedDeltaNet(GatedDeltaNetConfig(VOCAB, 32, 2, 2, 16)).eval()
    memory = model.initial_memory(1)
    shapes = {name: value.shape for name, value in memory.items()}
    _, memory = read(model, some_tokens(1, 3000), [1500, 1500])
    assert {name: value.shape for name, value in memory.items()} == shapes
    assert int(memory[POSITION]) == 3000
    for value in memory.values():
        assert bool(value.isfinite().all())


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least"):
        GatedDeltaNetConfig(VOCAB, 32, 1, 2, 8, conv_width=1)

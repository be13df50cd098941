"""Transformer++ against the library's Llama and Mistral, its window against a masked full attention, its cost."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.model.baselines.common import Reading
from engine.model.baselines.transformer import Attention, Transformer, TransformerConfig, build_window, places
from engine.model.layers import rotate
from tests.engine.model.baselines.models import LENGTH, VOCAB, WINDOW, read, some_tokens, tiny
from tests.tiny import distance

PLACES = {
    "mixer_norm.gain": "input_layernorm.weight",
    "mixer.query.weight": "self_attn.q_proj.weight",
    "mixer.key.weight": "self_attn.k_proj.weight",
    "mixer.value.weight": "self_attn.v_proj.weight",
    "mixer.out.weight": "self_attn.o_proj.weight",
    "feed_norm.gain": "post_attention_layernorm.weight",
    "feed.gate.weight": "mlp.gate_proj.weight",
    "feed.up.weight": "mlp.up_proj.weight",
    "feed.down.weight": "mlp.down_proj.weight",
}


def _weights(model: Transformer) -> dict[str, Tensor]:
    """The model's weights under the library's names."""
    found = {"model.norm.weight": model.norm.gain, "model.embed_tokens.weight": model.embedding.weight}
    found["lm_head.weight"] = model.embedding.weight
    for index, layer in enumerate(model.layers):
        for name, parameter in layer.named_parameters():
            found[f"model.layers.{index}.{PLACES[name]}"] = parameter
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize(("library", "window"), [("llama", None), ("mistral", WINDOW)])
def test_the_library_computes_the_same(library: str, window: int | None) -> None:
    config_module = importlib.import_module(f"transformers.models.{library}.configuration_{library}")
    model_module = importlib.import_module(f"transformers.models.{library}.modeling_{library}")
    model = copy.deepcopy(tiny("transformer" if window is None else "transformer-window"))
    assert isinstance(model, Transformer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    shape = model.config
    config = getattr(config_module, f"{library.capitalize()}Config")(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attn_implementation="eager",
        **({} if window is None else {"sliding_window": window}),
    )
    theirs = getattr(model_module, f"{library.capitalize()}ForCausalLM")(config).eval()
    theirs.load_state_dict(_weights(model))
    tokens = some_tokens(2, 90)
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
    assert distance(read(model, tokens, [90])[0], expected) <= 1e-4
    # And where the cache does the work.
    assert distance(read(model, tokens, [40, 1, 49])[0], expected) <= 1e-4


@pytest.mark.parametrize("num_read", [0, 5, 40])
def test_a_window_is_full_attention_that_forgets(num_read: int) -> None:
    torch.manual_seed(0)
    attention = Attention(32, 2, WINDOW, 10_000.0).double()
    x_BTD = torch.randn(2, num_read + LENGTH, 32, dtype=torch.float64)
    state, out = attention.initial_state(2), []
    position = 0
    for piece in torch.split(x_BTD, [num_read, LENGTH], 1):
        reading = Reading.of(torch.full((2,), position), None, piece.shape[1])
        with torch.no_grad():
            added, state = attention(piece, state, reading)
        out.append(added)
        position += piece.shape[1]
    assert torch.allclose(torch.cat(out, 1), _written_out(attention, x_BTD), rtol=0, atol=1e-9)


@torch.no_grad()
def _written_out(attention: Attention, x_BTD: Tensor) -> Tensor:
    """Every query by itself, RoPE as a turn of complex numbers."""
    width, heads = x_BTD.shape[2], attention.num_heads
    key_width = width // heads
    pace = 10_000.0 ** (-torch.arange(0, key_width, 2, dtype=torch.float64) / key_width)
    out = []
    for row_TD in x_BTD:
        answers = []
        for query, key, value in zip(
            *(f(row_TD).view(-1, heads, key_width) for f in (attention.query, attention.key, attention.value)),
            strict=True,
        ):
            answers.append((query, key, value))
        row = []
        for place, (query, _, _) in enumerate(answers):
            seen = range(max(0, place - WINDOW + 1), place + 1)
            turned_query = _turn(query, place * pace)
            scores = torch.stack([(turned_query * _turn(answers[s][1], s * pace)).sum(-1) for s in seen])
            weight = torch.softmax(scores / key_width**0.5, 0)
            row.append((weight.unsqueeze(-1) * torch.stack([answers[s][2] for s in seen])).sum(0).flatten())
        out.append(attention.out(torch.stack(row)))
    return torch.stack(out)


def _turn(x_HK: Tensor, angle: Tensor) -> Tensor:
    first, second = x_HK.chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def test_only_full_attention_s_memory_grows() -> None:
    sizes = {}
    for name in ("transformer", "transformer-window"):
        model = tiny(name)
        memories = [model.initial_memory(1)]
        for _ in range(3):
            memories.append(read(model, some_tokens(1, 20), [20], memories[-1])[1])
        sizes[name] = [memory["cache.1.key"].shape[2] for memory in memories]
    assert sizes == {"transformer": [0, 20, 40, 60], "transformer-window": [WINDOW - 1] * 4}


def test_a_long_text_costs_a_window_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, real, looked_at = build_window(VOCAB, 32, 1, 2), functional.scaled_dot_product_attention, []

    def spy(query: Tensor, key: Tensor, value: Tensor, **how: object) -> Tensor:
        looked_at.append(query.shape[2] * key.shape[2])
        out: Tensor = real(query, key, value, **how)  # type: ignore[arg-type]
        return out

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    for num_tokens in (512, 4096):
        looked_at.clear()
        read(model, some_tokens(1, num_tokens), [num_tokens])
        assert sum(looked_at) <= num_tokens * 1.5 * 512
    assert model.config.window == 512
    memory = model.initial_memory(1)
    looked_at.clear()
    read(model, some_tokens(1, 3), [1, 1, 1], memory)
    # The empty slots are not looked at.
    assert looked_at == [1, 2, 3]


@pytest.mark.parametrize("position", [7, 10_000_000])
def test_rope_knows_the_distance_only_far_out_too(position: int) -> None:
    x_BHTK = torch.randn(1, 2, 20, 16)
    scores = []
    for start in (0, position):
        turned = rotate(x_BHTK, places(Reading.of(torch.tensor([start]), None, 20), x_BHTK.device))
        scores.append(turned @ turned.transpose(-1, -2))
    assert distance(scores[1], scores[0]) <= 1e-5
    assert distance(scores[0], x_BHTK @ x_BHTK.transpose(-1, -2)) > 0.1


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="head width 3 must be even"):
        TransformerConfig(VOCAB, 6, 1, 2, 8)
    with pytest.raises(InvalidRequest, match="window of 1"):
        TransformerConfig(VOCAB, 8, 1, 2, 8, window=1)

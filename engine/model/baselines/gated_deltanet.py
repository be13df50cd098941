"""Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024): a matrix memory per head that the gated delta rule writes.

S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, read as S_t q_t; chunk by chunk in the WY form.
The memory is S (transposed) and the tail of the convolutions. Knows no attention.

Shapes: B rows, T tokens, D width, H heads, K key width, V value width, N chunks, C tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.model.baselines.common import (
    Baseline,
    Mixer,
    Reading,
    State,
    decay_within,
    fit_hidden,
    in_chunks,
    require_multiple,
    spread_time_steps,
    usual_hidden,
)
from engine.model.layers import CausalFilters, RMSNorm, unit

CHUNK = 32


@dataclass(frozen=True)
class GatedDeltaNetConfig:
    """Shape of a Gated DeltaNet.

    Attributes:
        vocab_size: entries of the tokenizer.
        width: model width d; a multiple of `num_heads`. Keys of a head are width / num_heads wide.
        num_layers, num_heads: layers, and heads of each.
        hidden: hidden size of the SwiGLU.
        value_expansion: width of the values over that of the keys (2 in the authors' released code).
        conv_width: taps of the causal convolutions on queries, keys and values.
        chunk: tokens that are solved for at once; changes nothing but the speed.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    hidden: int
    value_expansion: int = 2
    conv_width: int = 4
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        require_multiple(self.width, self.num_heads)
        if min(self.value_expansion, self.conv_width - 1, self.chunk) < 1:
            raise InvalidRequest("value_expansion and chunk must be at least 1, conv_width at least 2")


class GatedDeltaNet(Baseline):
    """Layers of the gated delta rule and SwiGLU."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__(
            config.vocab_size, config.width, config.hidden, [GatedDelta(config) for _ in range(config.num_layers)]
        )
        self.config = config


def build(
    vocab_size: int, width: int, num_layers: int, num_heads: int, num_parameters: int | None = None
) -> GatedDeltaNet:
    """A Gated DeltaNet.

    Args:
        vocab_size, width, num_layers, num_heads: see `GatedDeltaNetConfig`.
        num_parameters: total to come as near as possible to by the SwiGLU's hidden size; None: 8/3 of the width.

    Raises:
        InvalidRequest: no hidden size comes within 1 %, or the shape is impossible.
    """
    config = GatedDeltaNetConfig(vocab_size, width, num_layers, num_heads, usual_hidden(width))
    if num_parameters is not None:
        hidden = fit_hidden(lambda hidden: GatedDeltaNet(replace(config, hidden=hidden)), num_parameters)
        config = replace(config, hidden=hidden)
    return GatedDeltaNet(config)


class GatedDelta(Mixer):
    """Convolved q, k, v; decay as in Mamba-2; a gated norm per head (the paper's figure 1)."""

    name: ClassVar[str] = "delta"
    parts: ClassVar[tuple[str, ...]] = ("state", "tail")

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, values = config.width, config.num_heads, config.width * config.value_expansion
        self.query_key_value = nn.Linear(width, 2 * width + values, bias=False)
        self.filters = CausalFilters(2 * width + values, 1, config.conv_width)
        self.write = nn.Linear(width, heads, bias=False)
        self.step = nn.Linear(width, heads, bias=False)
        self.gate = nn.Linear(width, values, bias=False)
        self.read_norm = RMSNorm(values // heads)
        self.out = nn.Linear(values, width, bias=False)
        decay_log, step_bias = spread_time_steps(heads)
        self.decay_log_H, self.step_bias_H = nn.Parameter(decay_log), nn.Parameter(step_bias)

    def initial_state(self, num_rows: int) -> State:
        config, new = self.config, self.out.weight.new_zeros
        key, value = config.width // config.num_heads, self.out.weight.shape[1] // config.num_heads
        return {
            "state": new(num_rows, config.num_heads, key, value),
            "tail": new(num_rows, config.conv_width - 1, self.query_key_value.weight.shape[0]),
        }

    def forward(self, x_BTD: Tensor, state: State, reading: Reading) -> tuple[Tensor, State]:
        width, heads = self.config.width, self.config.num_heads
        filtered, tail = self.filters(self.query_key_value(x_BTD), state["tail"], reading.lengths_B)
        sizes = [width, width, width * self.config.value_expansion]
        query, key, value = (
            torch.unflatten(x, 2, (heads, -1)).transpose(1, 2)
            for x in torch.split(functional.silu(filtered[0]), sizes, 2)
        )
        beta = torch.sigmoid(self.write(x_BTD))
        log_decay = -self.decay_log_H.exp() * functional.softplus(self.step(x_BTD) + self.step_bias_H)
        real = reading.real()
        if real is not None:
            # A padded step neither writes nor forgets.
            beta, log_decay = beta * real.unsqueeze(2), log_decay * real.unsqueeze(2)
        answer, after = gated_delta(
            unit(query),
            unit(key),
            value,
            beta.transpose(1, 2),
            log_decay.transpose(1, 2),
            state["state"],
            self.config.chunk,
        )
        merged = self.read_norm(answer).transpose(1, 2).flatten(2) * functional.silu(self.gate(x_BTD))
        return self.out(merged), {"state": after, "tail": tail}


def gated_delta(
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor,
    state_BHKV: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """S_t q_t of every token [B,H,T,V] and the last S_t, transposed [B,H,K,V] (eq. 10 of the paper; WY form, §3.3).

    With g the cumulated log decay within a chunk, the values that are really written, U, solve
    (I + tril(beta (K K^T) e^{g_i - g_j}, -1)) U = beta V - beta e^g K S, one triangular solve a chunk.
    """
    num_tokens = query_BHTK.shape[2]
    if not num_tokens:
        return value_BHTV, state_BHKV
    size = min(chunk, num_tokens)
    query, key, value = (in_chunks(x, 2, size) for x in (query_BHTK, key_BHTK, value_BHTV))
    beta, sums = in_chunks(beta_BHT, 2, size).unsqueeze(-1), in_chunks(log_decay_BHT, 2, size).cumsum(-1)
    within, since = decay_within(sums), sums.exp().unsqueeze(-1)
    system = beta * (key @ key.transpose(-1, -2)) * within
    wanted = torch.cat([beta * value, beta * since * key], -1)
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    fresh, held = torch.split(solved, [value.shape[-1], key.shape[-1]], -1)
    kept = (key * (sums[..., -1:] - sums).exp().unsqueeze(-1)).transpose(-1, -2)
    whole = sums[..., -1].exp()[..., None, None]
    states, written = [state_BHKV], []
    for fresh_BHCV, held_BHCK, kept_BHKC, whole_BH11 in zip(
        *(x.unbind(2) for x in (fresh, held, kept, whole)), strict=True
    ):
        written.append(fresh_BHCV - held_BHCK @ states[-1])
        states.append(states[-1] * whole_BH11 + kept_BHKC @ written[-1])
    before, values = torch.stack(states[:-1], 2), torch.stack(written, 2)
    answer = since * (query @ before) + (query @ key.transpose(-1, -2) * within) @ values
    return answer.flatten(2, 3)[:, :, :num_tokens], states[-1]

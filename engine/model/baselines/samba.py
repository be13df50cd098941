"""Samba (Ren et al. 2024): layers alternate a selective state space and sliding-window attention, each with SwiGLU.

Differs from the paper in the state space: Mamba-2's (Dao, Gu 2024), with one scalar decay per head, which has an
exact chunked matrix form, where the paper has Mamba-1's diagonal one. Knows attention from `transformer.py` only.

Shapes: B rows, T tokens, D width, H heads, P head width, S state size, N chunks, C tokens of a chunk.
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
from engine.model.baselines.transformer import WINDOW, Attention
from engine.model.layers import CausalFilters, RMSNorm

CHUNK = 32


@dataclass(frozen=True)
class SambaConfig:
    """Shape of a Samba.

    Attributes:
        vocab_size: entries of the tokenizer.
        width: model width d; a multiple of `num_heads` with an even quotient.
        num_layers: mixers with their SwiGLU, by turns a state space (the first) and attention.
        num_heads: heads of the attention; the state space has `expansion` times as many, of the same width.
        hidden: hidden size of the SwiGLU.
        window: tokens that a token sees by attention, its own included.
        rope_base: RoPE's base.
        expansion: inner width of the state space over the model's.
        state_size: numbers that the state space keeps per channel.
        conv_width: taps of its causal convolution.
        chunk: tokens it takes at once; changes nothing but the speed.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    hidden: int
    window: int = WINDOW
    rope_base: float = 10_000.0
    expansion: int = 2
    state_size: int = 64
    conv_width: int = 4
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        require_multiple(self.width, self.num_heads, even=True)
        if min(self.expansion, self.state_size, self.chunk, self.conv_width - 1, self.window - 1) < 1:
            raise InvalidRequest("expansion, state_size and chunk must be at least 1, conv_width and window at least 2")


class Samba(Baseline):
    """State space and window, by turns."""

    def __init__(self, config: SambaConfig) -> None:
        mixers = [
            Attention(config.width, config.num_heads, config.window, config.rope_base)
            if index % 2
            else StateSpace(config)
            for index in range(config.num_layers)
        ]
        super().__init__(config.vocab_size, config.width, config.hidden, mixers)
        self.config = config


def build(vocab_size: int, width: int, num_layers: int, num_heads: int, num_parameters: int | None = None) -> Samba:
    """A Samba.

    Args:
        vocab_size, width, num_layers, num_heads: see `SambaConfig`.
        num_parameters: total to come as near as possible to by the SwiGLU's hidden size; None: 8/3 of the width.

    Raises:
        InvalidRequest: no hidden size comes within 1 %, or the shape is impossible.
    """
    config = SambaConfig(vocab_size, width, num_layers, num_heads, usual_hidden(width))
    if num_parameters is not None:
        hidden = fit_hidden(lambda hidden: Samba(replace(config, hidden=hidden)), num_parameters)
        config = replace(config, hidden=hidden)
    return Samba(config)


class StateSpace(Mixer):
    """Mamba-2's mixer: h_t = e^{-A dt_t} h_{t-1} + dt_t B_t x_t^T and y_t = C_t h_t + skip x_t, gated, then normed.

    x, B and C (`inner`, `into`, `out_of`) pass a causal convolution; all heads share B and C.
    """

    name: ClassVar[str] = "space"
    parts: ClassVar[tuple[str, ...]] = ("state", "tail")

    def __init__(self, config: SambaConfig) -> None:
        super().__init__()
        inner, self.num_heads = config.width * config.expansion, config.num_heads * config.expansion
        self.chunk, self.sizes = config.chunk, [inner, config.state_size, config.state_size]
        self.gate = nn.Linear(config.width, inner, bias=False)
        self.input_into_out_of = nn.Linear(config.width, sum(self.sizes), bias=False)
        self.step = nn.Linear(config.width, self.num_heads, bias=False)
        self.filters = CausalFilters(sum(self.sizes), 1, config.conv_width)
        self.norm = RMSNorm(inner)
        self.out = nn.Linear(inner, config.width, bias=False)
        decay_log, step_bias = spread_time_steps(self.num_heads)
        self.decay_log_H, self.step_bias_H = nn.Parameter(decay_log), nn.Parameter(step_bias)
        self.skip_H = nn.Parameter(torch.ones(self.num_heads))

    def initial_state(self, num_rows: int) -> State:
        inner, state_size, _ = self.sizes
        new = self.out.weight.new_zeros
        return {
            "state": new(num_rows, self.num_heads, state_size, inner // self.num_heads),
            "tail": new(num_rows, self.filters.taps - 1, sum(self.sizes)),
        }

    def forward(self, x_BTD: Tensor, state: State, reading: Reading) -> tuple[Tensor, State]:
        filtered, tail = self.filters(self.input_into_out_of(x_BTD), state["tail"], reading.lengths_B)
        inner, into, out_of = torch.split(functional.silu(filtered[0]), self.sizes, 2)
        step_BTH = functional.softplus(self.step(x_BTD) + self.step_bias_H)
        real = reading.real()
        if real is not None:
            # No time passes in a padded step.
            step_BTH = step_BTH * real.unsqueeze(2)
        inner_BTHP = torch.unflatten(inner, 2, (self.num_heads, -1))
        log_decay_BTH = -self.decay_log_H.exp() * step_BTH
        scaled = inner_BTHP * step_BTH.unsqueeze(3)
        answer, after = state_space(out_of, into, scaled, log_decay_BTH, state["state"], self.chunk)
        answer = answer + inner_BTHP * self.skip_H.unsqueeze(1)
        gated = self.norm(answer.flatten(2) * functional.silu(self.gate(x_BTD)))
        return self.out(gated), {"state": after, "tail": tail}


def state_space(
    out_of_BTS: Tensor,
    into_BTS: Tensor,
    input_BTHP: Tensor,
    log_decay_BTH: Tensor,
    state_BHSP: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """C_t h_t of every token [B,T,H,P] and the last h_t [B,H,S,P], with h_t = e^{log decay_t} h_{t-1} + B_t x_t^T.

    Mamba-2's "state space duality" (§6): attention with decay within a chunk, one state a chunk between them.
    """
    num_tokens = input_BTHP.shape[1]
    if not num_tokens:
        return input_BTHP, state_BHSP
    size = min(chunk, num_tokens)
    out_of, into, given = (in_chunks(x, 1, size) for x in (out_of_BTS, into_BTS, input_BTHP))
    sums_BNCH = in_chunks(log_decay_BTH, 1, size).cumsum(2)
    last_BN1H = sums_BNCH[:, :, -1:]
    scores_BN1CC = (out_of @ into.transpose(-1, -2)).unsqueeze(2)
    within_BNHCC = decay_within(sums_BNCH.transpose(-1, -2)) * scores_BN1CC
    answer_BNCHP = (within_BNHCC @ given.transpose(2, 3)).transpose(2, 3)
    # B and C are the same for all heads: their products with the states take the heads side by side.
    kept = given * (last_BN1H - sums_BNCH).exp().unsqueeze(-1)
    gained_BNSHP = torch.unflatten(into.transpose(-1, -2) @ kept.flatten(3), 3, kept.shape[3:])
    whole_BN1H1 = last_BN1H.exp().unsqueeze(-1)
    states = [state_BHSP.transpose(1, 2)]
    for gained_BSHP, whole_B1H1 in zip(gained_BNSHP.unbind(1), whole_BN1H1.unbind(1), strict=True):
        states.append(states[-1] * whole_B1H1 + gained_BSHP)
    before_BNSHP = torch.stack(states[:-1], 1)
    recalled = torch.unflatten(out_of @ before_BNSHP.flatten(3), 3, before_BNSHP.shape[3:])
    answer_BNCHP = answer_BNCHP + recalled * sums_BNCH.exp().unsqueeze(-1)
    return answer_BNCHP.flatten(1, 2)[:, :num_tokens], states[-1].transpose(1, 2)

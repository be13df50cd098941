"""Transformer++: Llama's layer (pre-RMSNorm, RoPE, SwiGLU, no bias, tied embedding), with full attention or a window.

A row's memory is its cache of rotated keys and of values: the last slot is the last token read, slots before the
first token are zero. With a window, the cache has a fixed size. Knows no other mixer.

Shapes: B rows, T tokens, D width, H heads, K head width, S slots (the cache, then the call's tokens), N queries.
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
    fit_hidden,
    require_multiple,
    usual_hidden,
)
from engine.model.layers import rotate

WINDOW = 512


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a Transformer++.

    Attributes:
        vocab_size: entries of the tokenizer.
        width: model width d; a multiple of `num_heads` with an even quotient.
        num_layers, num_heads: layers, and heads of each.
        hidden: hidden size of the SwiGLU.
        window: tokens that a token sees, its own included; None: all before it.
        rope_base: RoPE's base; the longest wave is 2 pi times it.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    hidden: int
    window: int | None = None
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        require_multiple(self.width, self.num_heads, even=True)
        if self.window is not None and self.window < 2:
            raise InvalidRequest(f"a window of {self.window} shows a token nothing but itself", param="window")


class Transformer(Baseline):
    """A Llama of any size."""

    def __init__(self, config: TransformerConfig) -> None:
        mixers = [
            Attention(config.width, config.num_heads, config.window, config.rope_base) for _ in range(config.num_layers)
        ]
        super().__init__(config.vocab_size, config.width, config.hidden, mixers)
        self.config = config


def build(
    vocab_size: int, width: int, num_layers: int, num_heads: int, num_parameters: int | None = None
) -> Transformer:
    """A Transformer++ with full attention.

    Args:
        vocab_size, width, num_layers, num_heads: see `TransformerConfig`.
        num_parameters: total to come as near as possible to by the SwiGLU's hidden size; None: Llama's 8/3 of width.

    Raises:
        InvalidRequest: no hidden size comes within 1 %, or the shape is impossible.
    """
    return _build(TransformerConfig(vocab_size, width, num_layers, num_heads, usual_hidden(width)), num_parameters)


def build_window(
    vocab_size: int,
    width: int,
    num_layers: int,
    num_heads: int,
    num_parameters: int | None = None,
    window: int = WINDOW,
) -> Transformer:
    """As `build`, where a token sees `window` tokens, its own included: the memory has a fixed size."""
    config = TransformerConfig(vocab_size, width, num_layers, num_heads, usual_hidden(width), window)
    return _build(config, num_parameters)


def _build(config: TransformerConfig, num_parameters: int | None) -> Transformer:
    if num_parameters is not None:
        hidden = fit_hidden(lambda hidden: Transformer(replace(config, hidden=hidden)), num_parameters)
        config = replace(config, hidden=hidden)
    return Transformer(config)


class Attention(Mixer):
    """Softmax attention with RoPE at absolute positions (Llama), over everything or over a sliding window."""

    name: ClassVar[str] = "cache"
    parts: ClassVar[tuple[str, ...]] = ("key", "value")

    def __init__(self, width: int, num_heads: int, window: int | None, rope_base: float) -> None:
        super().__init__()
        self.num_heads, self.window, self.rope_base = num_heads, window, rope_base
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def initial_state(self, num_rows: int) -> State:
        weight = self.query.weight
        num_slots = 0 if self.window is None else self.window - 1
        shape = (num_rows, self.num_heads, num_slots, weight.shape[0] // self.num_heads)
        return {part: weight.new_zeros(shape) for part in self.parts}

    def forward(self, x_BTD: Tensor, state: State, reading: Reading) -> tuple[Tensor, State]:
        place_BT = places(reading, x_BTD.device)
        query = rotate(self._heads(self.query(x_BTD)), place_BT, self.rope_base)
        slots = {
            "key": rotate(self._heads(self.key(x_BTD)), place_BT, self.rope_base),
            "value": self._heads(self.value(x_BTD)),
        }
        # Slots that no row has filled yet need not be looked at.
        num_held = min(state["key"].shape[2], reading.reach_before)
        if num_held:
            slots = {part: torch.cat([state[part][:, :, -num_held:], new], 2) for part, new in slots.items()}
        answer = self._attend(query, slots["key"], slots["value"], num_held, reading)
        num_slots = reading.reach_after if self.window is None else self.window - 1
        after = {part: _last(value, num_held, num_slots, reading) for part, value in slots.items()}
        return self.out(answer.transpose(1, 2).flatten(2)), after

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return torch.unflatten(x_BTD, 2, (self.num_heads, -1)).transpose(1, 2)

    def _attend(
        self, query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, num_held: int, reading: Reading
    ) -> Tensor:
        """Answers [B,H,T,K]. Under a window, block by block: half a window of queries looks at 3/2 windows of keys."""
        num_tokens, num_slots = query_BHTK.shape[2], key_BHSK.shape[2]
        window = num_slots if self.window is None else self.window
        size = num_tokens if num_slots <= window else max(window // 2, 16)
        parts = []
        for start in range(0, num_tokens, max(size, 1)):
            stop = min(start + size, num_tokens)
            seen = slice(max(0, num_held + start - window + 1), num_held + stop)
            query, key, value = query_BHTK[:, :, start:stop], key_BHSK[:, :, seen], value_BHSK[:, :, seen]
            if num_held + start == 0 and stop <= window:
                parts.append(functional.scaled_dot_product_attention(query, key, value, is_causal=True))
                continue
            mask = _visible(num_held + start, num_held + stop, seen.start, window, num_held, reading)
            parts.append(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0] if parts else query_BHTK


def _visible(start: int, stop: int, first: int, window: int, num_held: int, reading: Reading) -> Tensor | None:
    """Which of the slots `first` to `stop` the queries in `start` to `stop` see: [N,S] or [B,1,N,S]; None: all."""
    device = reading.position_B.device
    if reading.aligned and stop - start == 1:
        return None
    slots = torch.arange(first, stop, device=device)
    age = torch.arange(start, stop, device=device).unsqueeze(1) - slots
    seen = (age >= 0) & (age < window)
    if reading.aligned:
        return seen
    # A row that has read little has empty slots in front.
    filled = slots >= num_held - reading.position_B.unsqueeze(1)
    return (seen & filled.unsqueeze(1)).unsqueeze(1)


def _last(slots_BHSK: Tensor, num_held: int, num_slots: int, reading: Reading) -> Tensor:
    """The last `num_slots` slots up to every row's last real token; zero where there are not so many."""
    missing = num_slots - slots_BHSK.shape[2]
    if missing > 0:
        slots_BHSK = functional.pad(slots_BHSK, (0, 0, missing, 0))
    if reading.lengths_B is None:
        return slots_BHSK[:, :, slots_BHSK.shape[2] - num_slots :]
    end_B = reading.lengths_B + num_held + max(missing, 0)
    index = end_B.unsqueeze(1) - num_slots + torch.arange(num_slots, device=end_B.device)
    shape = (-1, slots_BHSK.shape[1], -1, slots_BHSK.shape[3])
    taken = slots_BHSK.gather(2, index.clamp_min(0)[:, None, :, None].expand(shape))
    return taken.masked_fill((index < 0)[:, None, :, None], 0.0)


def places(reading: Reading, device: torch.device) -> Tensor:
    """Absolute positions of the call's tokens [B or 1,T]."""
    position_B = reading.position_B[:1] if reading.aligned else reading.position_B
    return position_B.unsqueeze(1) + torch.arange(reading.num_tokens, device=device)

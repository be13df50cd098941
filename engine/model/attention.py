"""Softmax attention in the place of self-modifying Titans: Hope-Attention (HOPE.md §1(h)), the CMS chain kept.

Rotary positions; every token ever read stays in the state, in the slot of its absolute position. The state grows
with the text and rows of a batch share the longest one's slots: for training and evaluation, not for serving.
Knows no levels.

Shapes: B rows, T tokens of this call, S slots, D width, H heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import ModelConfig
from engine.model.layers import RMSNorm, rotate

State = dict[str, Tensor]


class CausalAttention(nn.Module):
    """The first half of a Hope-Attention block: every token looks at all tokens up to its own."""

    state_names = ("key", "value")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.norm = RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def initial_state(self, num_rows: int) -> State:
        """State of `num_rows` rows that have read nothing: `key` and `value` [B,H,0,K]."""
        nothing = self.norm.gain.new_zeros(num_rows, self.config.num_heads, 0, self.config.head_width)
        return {"key": nothing, "value": nothing}

    def forward(
        self, x_BTD: Tensor, state: State, position_B: Tensor, lengths_B: Tensor | None
    ) -> tuple[Tensor, State]:
        """What the block adds to the residual stream [B,T,D], and the state with this call's tokens.

        Args:
            state: `key` and `value` [B,H,S,K]; what lies in a row's slots from its position on is not read.
            position_B: tokens that every row has read before.
            lengths_B: real tokens of every row, or None where no row is padded.
        """
        normed = self.norm(x_BTD)
        place_BT = position_B.unsqueeze(1) + torch.arange(x_BTD.shape[1], device=x_BTD.device)
        query = rotate(self._heads(self.query(normed)), place_BT)
        new = {"key": rotate(self._heads(self.key(normed)), place_BT), "value": self._heads(self.value(normed))}
        starts = {int(position) for position in position_B.tolist()}
        if lengths_B is None and len(starts) == 1:
            (start,) = starts
            after = {name: torch.cat([state[name][:, :, :start], rows], 2) for name, rows in new.items()}
        else:
            count_B = torch.full_like(position_B, x_BTD.shape[1]) if lengths_B is None else lengths_B
            after = {name: _placed(state[name], rows, position_B, count_B) for name, rows in new.items()}
        num_slots = after["key"].shape[2]
        if not num_slots or not x_BTD.shape[1]:
            return torch.zeros_like(x_BTD), after
        key, value = after["key"], after["value"]
        if starts == {0} and lengths_B is None:
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            seen_BTS = torch.arange(num_slots, device=x_BTD.device) <= place_BT.unsqueeze(-1)
            y = functional.scaled_dot_product_attention(query, key, value, seen_BTS.unsqueeze(1))
        return self.out(y.transpose(1, 2).flatten(2)), after

    def _heads(self, x_BTD: Tensor) -> Tensor:
        rows, tokens, _ = x_BTD.shape
        return x_BTD.view(rows, tokens, self.config.num_heads, self.config.head_width).transpose(1, 2)


def _placed(old_BHSK: Tensor, new_BHTK: Tensor, position_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's real tokens in the slots from its position on; slots that nothing fills are zero."""
    end_B = position_B + lengths_B
    num_slots = int(end_B.max())
    slots = torch.arange(num_slots, device=old_BHSK.device)
    old = old_BHSK[:, :, :num_slots]
    kept = functional.pad(old, (0, 0, 0, num_slots - old.shape[2]))
    kept = kept * (slots < position_B.unsqueeze(1))[:, None, :, None]
    if not new_BHTK.shape[2]:
        return kept
    # The slot's own token of this call; a slot outside of it takes any and is masked.
    index_BS = (slots - position_B.unsqueeze(1)).clamp(0, new_BHTK.shape[2] - 1)
    came = new_BHTK.gather(2, index_BS[:, None, :, None].expand(-1, new_BHTK.shape[1], -1, new_BHTK.shape[3]))
    fresh_BS = (slots >= position_B.unsqueeze(1)) & (slots < end_B.unsqueeze(1))
    return kept + came * fresh_BS[:, None, :, None]

"""Self-modifying Titans (HOPE.md §1(f), eq. 83 to 96): five memories per head that write themselves.

Keys, values, step sizes, retention and the answer all come from memories; each memory also makes its own target,
M(v). Everything that changes is in the state that goes in and comes out. Knows no levels beyond its own.

Shapes: B rows, T tokens, D width, H heads, K head width, N tokens of a piece, S slots of the open frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import ModelConfig
from engine.model.grid import Piece, extend, keep_open, put, take
from engine.model.layers import CausalFilters, RMSNorm
from engine.model.update_rule import (
    Chunk,
    Weights,
    apply_write,
    plan_write,
    read,
    read_within,
    solve_delta,
)

# The stacks of memories that share a shape: M_memory; M_k and M_v; M_eta and M_alpha.
STACKS = ("memory", "projections", "rates")
State = dict[str, Tensor]


class InitialMemory(nn.Module):
    """Meta-learned initial states M_0 of stacked memories, per head: W2 [H,M,F,K], W1 [H,M,O,F]."""

    def __init__(self, num_heads: int, num_memories: int, key: int, hidden: int, out: int) -> None:
        super().__init__()
        # Keys have norm 1: this scale gives hidden units of about 0.25, where SiLU is gently curved.
        self.w2 = nn.Parameter(torch.randn(num_heads, num_memories, hidden, key) * 0.25)
        self.w1 = nn.Parameter(torch.randn(num_heads, num_memories, out, hidden) * 0.05)


class SelfModifyingTitans(nn.Module):
    """The first half of a Hope block: reads and writes its memories as tokens pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, key = config.width, config.num_heads, config.head_width
        self.norm = RMSNorm(width)
        self.filters = CausalFilters(width, 3, config.conv_width)
        self.query = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.read_norm = RMSNorm(key)
        self.initial = nn.ModuleDict(
            {
                "memory": InitialMemory(heads, 1, key, config.memory_hidden, key),
                "projections": InitialMemory(heads, 2, key, config.projection_hidden, key),
                "rates": InitialMemory(heads, 2, key, config.rate_hidden, 1),
            }
        )
        # eta from 0.03 to 0.18 and a retention horizon from some 500 to 10,000 tokens, spread over the heads.
        self.eta_bias = nn.Parameter(torch.linspace(-3.5, -1.5, heads))
        self.alpha_bias = nn.Parameter(torch.linspace(4.5, 7.5, heads))

    def initial_state(self, num_rows: int) -> State:
        """State of `num_rows` rows that have read nothing."""
        config = self.config
        heads, key, slots = config.num_heads, config.head_width, config.chunk_projections
        new = self.eta_bias.new_zeros
        state = {
            "tail": new(num_rows, config.conv_width - 1, config.width),
            "open.key": new(num_rows, heads, slots, key),
            "open.value": new(num_rows, heads, slots, key),
            "open.rates": new(num_rows, heads, slots, 2),
        }
        for stack in STACKS:
            initial = self.initial[stack]
            for part in ("w2", "w1"):
                start: Tensor = getattr(initial, part).unsqueeze(0).expand(num_rows, -1, -1, -1, -1)
                state[f"{stack}.{part}"] = torch.zeros_like(start) if config.decay_towards == "initial" else start
        return state

    def forward(
        self, x_BTD: Tensor, state: State, pieces: list[Piece], lengths_B: Tensor | None
    ) -> tuple[Tensor, State]:
        """What the block adds to the residual stream [B,T,D], and the state after the last piece."""
        state = dict(state)
        filtered, state["tail"] = self.filters(self.norm(x_BTD), state["tail"], lengths_B)
        query_x, key_x, value_x = filtered.unbind(0)
        query = functional.normalize(self._heads(self.query(query_x)), dim=-1)
        key_in, value_in = self._heads(key_x), self._heads(value_x)
        parts, out = [], torch.zeros_like(query)
        for piece in pieces:
            y, state = self.segment(state, take(key_in, piece), take(value_in, piece), take(query, piece), piece)
            if piece.uneven is None:
                parts.append(y)
            else:
                out = put(out, y, piece)
        if parts:
            out = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        merged = self.read_norm(out).transpose(1, 2).flatten(2)
        return self.out(merged * functional.silu(self.gate(query_x))), state

    def segment(
        self, state: State, key_x_BHNK: Tensor, value_x_BHNK: Tensor, query_BHNK: Tensor, piece: Piece
    ) -> tuple[Tensor, State]:
        """One piece: its answers [B,H,N,K] and the state after it. Training may replace this by its compiled self."""
        state = dict(state)
        new = self._project(state, key_x_BHNK, value_x_BHNK)
        return self._advance(state, new, query_BHNK, piece), state

    def _heads(self, x_BTD: Tensor) -> Tensor:
        rows, tokens, _ = x_BTD.shape
        return x_BTD.view(rows, tokens, self.config.num_heads, self.config.head_width).transpose(1, 2)

    def _weights(self, state: State, stack: str) -> Weights:
        initial = self.initial[stack] if self.config.decay_towards == "initial" else None
        return Weights(
            state[f"{stack}.w2"],
            state[f"{stack}.w1"],
            None if initial is None else initial.w2,  # type: ignore[arg-type]
            None if initial is None else initial.w1,  # type: ignore[arg-type]
        )

    def _project(self, state: State, key_x_BHNK: Tensor, value_x_BHNK: Tensor) -> dict[str, Tensor]:
        """k, v (unit length), eta and 1 - alpha of a piece, read from the memories' state at the chunk's start."""
        both = torch.stack([key_x_BHNK, value_x_BHNK], 2)
        projected = functional.normalize(read(self._weights(state, "projections").total(), both, residual=True), dim=-1)
        rates = read(self._weights(state, "rates").total(), key_x_BHNK.unsqueeze(2), residual=False)
        eta = torch.sigmoid(rates[:, :, 0] + self.eta_bias[:, None, None])
        span = 1.0 - self.config.retention_floor
        forget = span * torch.sigmoid(-(rates[:, :, 1] + self.alpha_bias[:, None, None]))
        # eta <= alpha keeps the delta rule's eigenvalues at or above zero.
        eta = torch.minimum(eta, 1.0 - forget)
        key, value = projected.unbind(2)
        # 1 - alpha is what is stored: near zero it keeps its digits in any precision.
        return {"key": key, "value": value, "rates": torch.cat([eta, forget], -1)}

    def _advance(self, state: State, new: dict[str, Tensor], query_BHNK: Tensor, piece: Piece) -> Tensor:
        """Answers the piece's queries [B,H,N,K] and moves `state` (in place of the dict, not of its tensors)."""
        frame = {name: extend(state[f"open.{name}"], value, piece) for name, value in new.items()}
        weights = self._weights(state, "memory")
        opened = self._open_chunk(frame, piece)
        write = plan_write(weights, solve_delta(opened), residual=True)
        mask, retained = self._visible(write.delta.retained_BHC, piece)
        y = read_within(weights, write, query_BHNK, mask, retained)
        if piece.closes_memory:
            rows = piece.uneven.closes_memory_B if piece.uneven else None
            self._settle(state, "memory", apply_write(weights, write, self.config.max_drift), rows)
        if piece.closes_projections:
            rows = piece.uneven.closes_projections_B if piece.uneven else None
            delta = solve_delta(_chunk(frame["key"], frame["value"], frame["rates"]))
            for stack, residual in (("projections", True), ("rates", False)):
                weights = self._weights(state, stack)
                after = apply_write(weights, plan_write(weights, delta, residual), self.config.max_drift)
                self._settle(state, stack, after, rows)
        for name, value in frame.items():
            state[f"open.{name}"] = keep_open(value, piece, self.config.chunk_projections)
        return y

    @staticmethod
    def _open_chunk(frame: dict[str, Tensor], piece: Piece) -> Chunk:
        """M_memory's own chunk: the end of the frame; earlier slots are cut off, or do nothing in uneven rows."""
        if piece.uneven is None:
            return _chunk(*(frame[name][:, :, piece.first_slot :] for name in ("key", "value", "rates")))
        slots = torch.arange(frame["rates"].shape[2], device=frame["rates"].device)
        own = slots >= piece.uneven.first_slot_B.unsqueeze(1)
        return _chunk(frame["key"], frame["value"], frame["rates"] * own[:, None, :, None])

    @staticmethod
    def _visible(retained_BHC: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        """Which slots each query sees (its own included), and the retention up to its slot."""
        num_slots, device = retained_BHC.shape[2], retained_BHC.device
        if piece.uneven is None:
            offset = piece.slot - piece.first_slot
            mask = torch.ones(piece.count, num_slots, device=device, dtype=retained_BHC.dtype).tril(offset)
            return mask, retained_BHC[:, :, offset : offset + piece.count]
        slots = piece.uneven.slots_BN
        mask = torch.arange(num_slots, device=device) <= slots.unsqueeze(-1)
        index = slots.unsqueeze(1).expand(-1, retained_BHC.shape[1], -1)
        return mask.unsqueeze(1).to(retained_BHC.dtype), retained_BHC.gather(2, index)

    @staticmethod
    def _settle(state: State, stack: str, after: tuple[Tensor, Tensor], rows_B: Tensor | None) -> None:
        for part, value in zip(("w2", "w1"), after, strict=True):
            name = f"{stack}.{part}"
            if rows_B is not None:
                value = torch.where(rows_B[:, None, None, None, None], value, state[name])
            state[name] = value


def _chunk(key: Tensor, value: Tensor, rates: Tensor) -> Chunk:
    return Chunk(key, value, rates[..., 0], 1.0 - rates[..., 1])

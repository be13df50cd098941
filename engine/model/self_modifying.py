"""Self-modifying Titans (HOPE.md §1(f), eq. 83 to 96): five memories per head that write themselves.

Keys, values, step sizes, retention and the answer all come from memories; each memory also makes its own target,
M(v). Everything that changes is in the state that goes in and comes out. Knows no levels beyond its own.

Shapes: B rows, T tokens, D width, H heads, K head width, N tokens of a piece, S slots of the open frame.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import ModelConfig
from engine.model.grid import Piece, cleared, extend, own_chunk, put, take
from engine.model.layers import CausalFilters, RMSNorm, unit
from engine.model.update_rule import (
    Chunk,
    Earlier,
    Weights,
    Write,
    apply_write,
    plan_write,
    read,
    read_within,
    solve_delta,
)

# The stacks of memories that share a shape: M_memory; M_k and M_v; M_eta and M_alpha.
STACKS = ("memory", "projections", "rates")
# What the open chunks keep of a token: as it came, and what M_memory will write of it.
CAME, PLANNED = ("key", "value", "rates"), ("activation", "step", "inner")
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

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """The tensors of a state."""
        return tuple(self.initial_state(1))

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
            "open.activation": new(num_rows, heads, slots, config.memory_hidden),
            "open.step": new(num_rows, heads, slots, key),
            "open.inner": new(num_rows, heads, slots, config.memory_hidden),
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
        query = unit(self._heads(self.query(query_x)))
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
        projected = unit(read(self._weights(state, "projections").total(), both, residual=True))
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
        if piece.uneven is not None:
            # A padded step neither learns nor forgets.
            new["rates"] = new["rates"] * piece.uneven.valid_BN[:, None, :, None]
        weights, earlier = self._weights(state, "memory"), self._earlier(state, piece)
        delta = solve_delta(_chunk(new), earlier)
        planned = plan_write(weights, delta, True, earlier)
        new["activation"], new["step"], new["inner"] = (
            rows[:, :, 0] for rows in (planned.activation_BHMCF, planned.step_BHMCO, planned.inner_BHMCF)
        )
        frame = {name: extend(state[f"open.{name}"], rows, piece) for name, rows in new.items()}
        write = _write({name: own_chunk(rows, piece) for name, rows in frame.items()})
        y = read_within(weights, write, query_BHNK, _visible(write, piece), delta.retained_BHC)
        uneven = piece.uneven
        if piece.closes_memory:
            after = apply_write(weights, write, delta.retained_BHC[:, :, -1], self.config.max_drift)
            self._settle(state, "memory", after, uneven.closes_memory_B if uneven else None)
        if piece.closes_projections:
            self._close_projections(state, _chunk(frame), uneven.closes_projections_B if uneven else None)
        for name in CAME:
            closed_B = uneven.closes_projections_B if uneven else None
            state[f"open.{name}"] = cleared(frame[name], piece.closes_projections, closed_B)
        for name in PLANNED:
            closed_B = uneven.closes_memory_B if uneven else None
            state[f"open.{name}"] = cleared(frame[name], piece.closes_memory, closed_B)
        return y

    def _close_projections(self, state: State, chunk: Chunk, rows_B: Tensor | None) -> None:
        """The other memories learn their whole chunk at once."""
        delta = solve_delta(chunk)
        for stack, residual in (("projections", True), ("rates", False)):
            weights = self._weights(state, stack)
            write = plan_write(weights, delta, residual)
            after = apply_write(weights, write, delta.retained_BHC[:, :, -1], self.config.max_drift)
            self._settle(state, stack, after, rows_B)

    @staticmethod
    def _earlier(state: State, piece: Piece) -> Earlier | None:
        """What the open chunk of M_memory holds already; None where the piece begins it."""
        key, inner, rates = (state[f"open.{name}"] for name in ("key", "inner", "rates"))
        if piece.uneven is None:
            own = slice(piece.first_slot, piece.slot)
            if piece.first_slot == piece.slot:
                return None
            key, inner, forget = key[:, :, own], inner[:, :, own], rates[:, :, own, 1]
        else:
            slots = torch.arange(rates.shape[2], device=rates.device)
            own_BS = slots >= piece.uneven.first_slot_B.unsqueeze(1)
            forget = rates[..., 1] * own_BS.unsqueeze(1)
        return Earlier(key, inner.unsqueeze(2), (1.0 - forget).prod(-1, keepdim=True))

    @staticmethod
    def _settle(state: State, stack: str, after: tuple[Tensor, Tensor], rows_B: Tensor | None) -> None:
        for part, value in zip(("w2", "w1"), after, strict=True):
            name = f"{stack}.{part}"
            if rows_B is not None:
                value = torch.where(rows_B[:, None, None, None, None], value, state[name])
            state[name] = value


def _chunk(slots: State) -> Chunk:
    rates = slots["rates"]
    return Chunk(slots["key"], slots["value"], rates[..., 0], 1.0 - rates[..., 1])


def _write(slots: State) -> Write:
    activation, step, inner = (slots[name].unsqueeze(2) for name in PLANNED)
    return Write(slots["key"], activation, step, inner)


def _visible(write: Write, piece: Piece) -> Tensor | None:
    """Which slots each query sees, its own included; None where that is all of them."""
    key = write.key_BHCK
    if piece.uneven is None:
        if piece.count == 1:
            return None
        offset = piece.slot - piece.first_slot
        return torch.ones(piece.count, key.shape[2], device=key.device, dtype=key.dtype).tril(offset)
    slots = torch.arange(key.shape[2], device=key.device)
    return (slots <= piece.uneven.slots_BN.unsqueeze(-1)).unsqueeze(1).to(key.dtype)

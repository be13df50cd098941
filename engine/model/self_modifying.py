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
from engine.model.layers import RMSNorm
from engine.model.projections import Projections, State
from engine.model.update_rule import (
    Chunk,
    Earlier,
    Momentum,
    Rule,
    Weights,
    Write,
    apply_momentum,
    apply_write,
    plan_write,
    read,
    read_within,
    solve_delta,
)

# What the open chunks keep of a token: as it came, and what M_memory will write of it.
CAME, PLANNED = ("key", "value", "rates"), ("activation", "step", "inner")


class InitialMemory(nn.Module):
    """Meta-learned initial states M_0 of stacked memories, per head: W2 [H,M,F,K], W1 [H,M,O,F]."""

    def __init__(self, num_heads: int, num_memories: int, key: int, hidden: int, out: int) -> None:
        super().__init__()
        # Keys have norm 1: this scale gives hidden units of about 0.25, where SiLU is gently curved.
        self.w2 = nn.Parameter(torch.randn(num_heads, num_memories, hidden, key) * 0.25)
        self.w1 = nn.Parameter(torch.randn(num_heads, num_memories, out, hidden) * 0.05)


class SelfModifyingTitans(Projections):
    """The first half of a Hope block: reads and writes its memories as tokens pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width, heads, key = config.width, config.num_heads, config.head_width
        self.rule = Rule(config.write_rule, config.objective, config.largest_step)
        self.gate = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.read_norm = RMSNorm(key)
        hidden = {"memory": config.memory_hidden, "projections": config.projection_hidden, "rates": config.rate_hidden}
        self.initial = nn.ModuleDict(
            {
                stack: InitialMemory(heads, len(names), key, hidden[stack], 1 if stack == "rates" else key)
                for stack, names in self.stacks.items()
            }
        )
        if config.momentum:
            # The share of S that a chunk carries on, before a sigmoid: a half at first.
            self.momentum_bias = nn.ParameterDict({stack: torch.zeros(heads) for stack in self.stacks})

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
        for stack in self.stacks:
            initial = self.initial[stack]
            for part, carried in (("w2", "s2"), ("w1", "s1")):
                start: Tensor = getattr(initial, part).unsqueeze(0).expand(num_rows, -1, -1, -1, -1)
                state[f"{stack}.{part}"] = torch.zeros_like(start) if config.decay_towards == "initial" else start
                if config.momentum:
                    state[f"{stack}.{carried}"] = torch.zeros_like(start)
        return state

    def forward(
        self, x_BTD: Tensor, state: State, pieces: list[Piece], lengths_B: Tensor | None
    ) -> tuple[Tensor, State]:
        """What the block adds to the residual stream [B,T,D], and the state after the last piece."""
        state = dict(state)
        filtered, state["tail"] = self.filters(self.norm(x_BTD), state["tail"], lengths_B)
        query_x, key_x, value_x = filtered.unbind(0)
        parts = self.prepare(query_x, key_x, value_x)
        answers: list[Tensor] = []
        out: Tensor | None = None
        for piece in pieces:
            taken = {name: take(part, piece) for name, part in parts.items()}
            y, state = self.segment(state, taken, piece)
            if piece.uneven is None:
                answers.append(y)
            else:
                out = put(torch.zeros_like(self._heads(x_BTD)) if out is None else out, y, piece)
        if answers:
            out = torch.cat(answers, 2) if len(answers) > 1 else answers[0]
        if out is None:
            return torch.zeros_like(x_BTD), state
        merged = self.read_norm(out).transpose(1, 2).flatten(2)
        return self.out(merged * functional.silu(self.gate(query_x))), state

    def segment(self, state: State, parts: State, piece: Piece) -> tuple[Tensor, State]:
        """One piece: its answers [B,H,N,K] and the state after it. Training may replace this by its compiled self."""
        state = dict(state)
        weights = {stack: self._weights(state, stack) for stack in self.stacks}
        query, new = self.project(parts, {stack: self._writing(own) for stack, own in weights.items()})
        return self._advance(state, new, query, weights, piece), state

    def _weights(self, state: State, stack: str) -> Weights:
        initial = self.initial[stack] if self.config.decay_towards == "initial" else None
        return Weights(
            state[f"{stack}.w2"],
            state[f"{stack}.w1"],
            None if initial is None else initial.w2,  # type: ignore[arg-type]
            None if initial is None else initial.w1,  # type: ignore[arg-type]
        )

    def _writing(self, weights: Weights) -> Weights:
        """The weights as a write sees them: where keys, values and errors come from (`write_gradient`)."""
        return weights.given() if self.config.write_gradient == "first-order" else weights

    def _advance(
        self, state: State, new: State, query_BHNK: Tensor, weights: dict[str, Weights], piece: Piece
    ) -> Tensor:
        """Answers the piece's queries [B,H,N,K] and moves `state` (in place of the dict, not of its tensors)."""
        if piece.uneven is not None:
            # A padded step neither learns nor forgets.
            new["rates"] = new["rates"] * piece.uneven.valid_BN[:, None, :, None]
        memory, earlier = weights["memory"], self._earlier(state, piece)
        delta = solve_delta(_chunk(new), earlier, self.rule)
        planned = plan_write(self._writing(memory), delta, True, earlier, self.rule)
        new["activation"], new["step"], new["inner"] = (
            rows[:, :, 0] for rows in (planned.activation_BHMCF, planned.step_BHMCO, planned.inner_BHMCF)
        )
        frame = {name: extend(state[f"open.{name}"], rows, piece) for name, rows in new.items()}
        write = _write({name: own_chunk(rows, piece) for name, rows in frame.items()})
        if self.config.read == "boundary":
            y = read(memory.total(), query_BHNK.unsqueeze(2), residual=True)[:, :, 0]
        else:
            y = read_within(memory, write, query_BHNK, _visible(write, piece), delta.retained_BHC)
        uneven = piece.uneven
        if piece.closes_memory:
            retained_BH = delta.retained_BHC[:, :, -1]
            self._settle(state, "memory", memory, write, retained_BH, uneven.closes_memory_B if uneven else None)
        if piece.closes_projections and len(self.stacks) > 1:
            self._close_projections(state, _chunk(frame), weights, uneven.closes_projections_B if uneven else None)
        for name in CAME:
            closed_B = uneven.closes_projections_B if uneven else None
            state[f"open.{name}"] = cleared(frame[name], piece.closes_projections, closed_B)
        for name in PLANNED:
            closed_B = uneven.closes_memory_B if uneven else None
            state[f"open.{name}"] = cleared(frame[name], piece.closes_memory, closed_B)
        return y

    def _close_projections(
        self, state: State, chunk: Chunk, weights: dict[str, Weights], rows_B: Tensor | None
    ) -> None:
        """The other memories learn their whole chunk at once."""
        delta = solve_delta(chunk, None, self.rule)
        for stack in self.stacks:
            if stack != "memory":
                write = plan_write(self._writing(weights[stack]), delta, stack != "rates", None, self.rule)
                self._settle(state, stack, weights[stack], write, delta.retained_BHC[:, :, -1], rows_B)

    @staticmethod
    def _earlier(state: State, piece: Piece) -> Earlier | None:
        """What the open chunk of M_memory holds already; None where the piece begins it."""
        rates, rows = state["open.rates"], [state[f"open.{name}"] for name in ("key", *PLANNED)]
        if piece.uneven is None:
            own = slice(piece.first_slot, piece.slot)
            if piece.first_slot == piece.slot:
                return None
            rows, forget = [row[:, :, own] for row in rows], rates[:, :, own, 1]
        else:
            slots = torch.arange(rates.shape[2], device=rates.device)
            own_BS = slots >= piece.uneven.first_slot_B.unsqueeze(1)
            forget = rates[..., 1] * own_BS.unsqueeze(1)
        key, activation, step, inner = rows
        retained = (1.0 - forget).prod(-1, keepdim=True)
        return Earlier(key, activation.unsqueeze(2), step.unsqueeze(2), inner.unsqueeze(2), retained)

    def _settle(
        self, state: State, stack: str, weights: Weights, write: Write, retained_BH: Tensor, rows_B: Tensor | None
    ) -> None:
        """Applies a stack's writes of a whole chunk, in the rows that close it (None: all of them)."""
        limit = self.config.max_drift
        if self.config.momentum:
            share_H = torch.sigmoid(self.momentum_bias[stack])
            momentum = Momentum(state[f"{stack}.s2"], state[f"{stack}.s1"], share_H)
            after, carried = apply_momentum(weights, write, retained_BH, limit, momentum)
            new = dict(zip(("w2", "w1", "s2", "s1"), (*after, *carried), strict=True))
        else:
            new = dict(zip(("w2", "w1"), apply_write(weights, write, retained_BH, limit), strict=True))
        for part, value in new.items():
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

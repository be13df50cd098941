"""The memories as HOPE.md §1(f) prints them: eq. 88 and 90, one token after another, with explicit loops.

Written from the paper's equations, not from the engine's code; slow on purpose. One row, one head at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.model.self_modifying import InitialMemory, SelfModifyingTitans

# Where each of the five memories lies: its stack and its place in it.
PLACES = {
    "memory": ("memory", 0),
    "key": ("projections", 0),
    "value": ("projections", 1),
    "eta": ("rates", 0),
    "alpha": ("rates", 1),
}


def silu(x: Tensor) -> Tensor:
    """The memories' non-linearity."""
    return x * torch.sigmoid(x)


def silu_slope(x: Tensor) -> Tensor:
    """Its derivative, written out."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


@dataclass
class PlainMemory:
    """One memory M(x) = [x +] W1 s(W2 x): what is fixed, what decays, and the state at the chunk's start."""

    fixed: tuple[Tensor, Tensor]
    w2: Tensor
    w1: Tensor
    residual: bool
    boundary: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.close_chunk(float("inf"))

    def read(self, x: Tensor) -> Tensor:
        """M_t(x): with every write so far."""
        return self._at((self.fixed[0] + self.w2, self.fixed[1] + self.w1), x)

    def read_boundary(self, x: Tensor) -> Tensor:
        """M(x) at the chunk's start."""
        return self._at(self.boundary, x)

    def write(self, key: Tensor, value: Tensor, eta: Tensor, alpha: Tensor) -> None:
        """Eq. 88 with the gradient of ||M(k) - M(v)||^2 / 2 at the chunk's start (eq. 90)."""
        w2, w1 = self.boundary
        hidden = w2 @ key
        error = self.read_boundary(key) - self.read_boundary(value)
        delta = (w1.T @ error) * silu_slope(hidden)
        width = key.shape[0]
        gate = alpha * torch.eye(width, dtype=key.dtype) - eta * torch.outer(key, key)
        self.w2 = self.w2 @ gate - eta * torch.outer(delta, key)
        self.w1 = alpha * self.w1 - eta * torch.outer(error, silu(hidden))

    def close_chunk(self, max_drift: float) -> None:
        """The next chunk starts from here, within the bound of law 6."""
        self.w2, self.w1 = (m * min(1.0, max_drift / max(float(m.norm()), 1e-6)) for m in (self.w2, self.w1))
        self.boundary = (self.fixed[0] + self.w2, self.fixed[1] + self.w1)

    def _at(self, weights: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        out = weights[1] @ silu(weights[0] @ x)
        return x + out if self.residual else out


class PlainTitans:
    """One layer's five memories per head over one row, token by token."""

    def __init__(self, module: SelfModifyingTitans) -> None:
        self.module, self.config = module, module.config
        self.heads = [_memories(module, head, self.config) for head in range(self.config.num_heads)]

    def run(self, x_TD: Tensor) -> Tensor:
        """What the layer adds to the residual stream [T,D]."""
        module, config = self.module, self.config
        normed = x_TD / (x_TD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.norm.gain
        taps = module.filters.weight_WF11D.squeeze(2).squeeze(2)
        rows = []
        for t in range(x_TD.shape[0]):
            query_x, key_x, value_x = torch.zeros(3, config.width, dtype=x_TD.dtype)
            for back in range(min(config.conv_width, t + 1)):
                of_query, of_key, of_value = taps[config.conv_width - 1 - back]
                query_x = query_x + of_query * normed[t - back]
                key_x = key_x + of_key * normed[t - back]
                value_x = value_x + of_value * normed[t - back]
            query = module.query.weight @ query_x
            parts = zip(*(x.chunk(config.num_heads) for x in (query, key_x, value_x)), strict=True)
            answers = [self._token(head, *part) for head, part in enumerate(parts)]
            self._close_chunks(t + 1)
            merged = torch.cat([self._read_norm(y) for y in answers])
            rows.append(module.out.weight @ (merged * silu(module.gate.weight @ query_x)))
        return torch.stack(rows)

    def _token(self, head: int, query: Tensor, key_x: Tensor, value_x: Tensor) -> Tensor:
        memories, module = self.heads[head], self.module
        key = _unit(memories["key"].read_boundary(key_x))
        value = _unit(memories["value"].read_boundary(value_x))
        eta = torch.sigmoid(memories["eta"].read_boundary(key_x)[0] + module.eta_bias[head])
        floor = self.config.retention_floor
        gate = torch.sigmoid(memories["alpha"].read_boundary(key_x)[0] + module.alpha_bias[head])
        alpha = floor + (1 - floor) * gate
        eta = torch.minimum(eta, alpha)
        for memory in memories.values():
            memory.write(key, value, eta, alpha)
        return memories["memory"].read(_unit(query))

    def _close_chunks(self, num_read: int) -> None:
        for memories in self.heads:
            for name, memory in memories.items():
                chunk = self.config.chunk_memory if name == "memory" else self.config.chunk_projections
                if num_read % chunk == 0:
                    memory.close_chunk(self.config.max_drift)

    def _read_norm(self, y: Tensor) -> Tensor:
        return y / (y.square().mean() + 1e-5).sqrt() * self.module.read_norm.gain


def _memories(module: SelfModifyingTitans, head: int, config: ModelConfig) -> dict[str, PlainMemory]:
    made = {}
    for name, (stack, at) in PLACES.items():
        initial = module.initial[stack]
        assert isinstance(initial, InitialMemory)
        start = initial.w2.detach()[head, at], initial.w1.detach()[head, at]
        nothing = torch.zeros_like(start[0]), torch.zeros_like(start[1])
        fixed, moving = (start, nothing) if config.decay_towards == "initial" else (nothing, start)
        made[name] = PlainMemory(fixed, moving[0], moving[1], residual=stack != "rates")
    return made


def _unit(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x)
    return x / length

"""The memories as HOPE.md §1(f) prints them: eq. 88 and 90, one token after another, with explicit loops.

Written from the paper's equations, not from the engine's code; slow on purpose. One row, one head at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.model.attention import CausalAttention
from engine.model.projections import stacks_of
from engine.model.self_modifying import InitialMemory, SelfModifyingTitans
from engine.model.update_rule import DEFAULT_RULE, Rule


def places(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Where each memory of a layer lies: its stack and its place in it."""
    return {name: (stack, at) for stack, names in stacks_of(config).items() for at, name in enumerate(names)}


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
    rule: Rule = DEFAULT_RULE
    # The share of S that a chunk carries on; None where there is no momentum.
    share: Tensor | None = None
    boundary: tuple[Tensor, Tensor] = field(init=False)
    carried: tuple[Tensor, Tensor] = field(init=False)
    # The chunk's own start, and the product of alpha since.
    start: tuple[Tensor, Tensor] = field(init=False)
    kept: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.carried = torch.zeros_like(self.w2), torch.zeros_like(self.w1)
        self._start_chunk()

    def read(self, x: Tensor) -> Tensor:
        """M_t(x): with every write so far."""
        return self._at((self.fixed[0] + self.w2, self.fixed[1] + self.w1), x)

    def read_boundary(self, x: Tensor) -> Tensor:
        """M(x) at the chunk's start."""
        return self._at(self.boundary, x)

    def write(self, key: Tensor, value: Tensor, eta: Tensor, alpha: Tensor) -> None:
        """Eq. 88 with the gradient of the objective at the chunk's start (eq. 90, 92, 93)."""
        w2, w1 = self.boundary
        hidden, target = w2 @ key, self.read_boundary(value)
        error = self.read_boundary(key) - target if self.rule.objective == "l2" else -target
        delta = (w1.T @ error) * silu_slope(hidden)
        gate = alpha * torch.eye(key.shape[0], dtype=key.dtype)
        if self.rule.write != "gradient":
            gate = gate - eta * torch.outer(key, key)
        self.w2 = self.w2 @ gate - eta * torch.outer(delta, key)
        activation = silu(hidden)
        gate = alpha * torch.eye(activation.shape[0], dtype=key.dtype)
        if self.rule.write == "dgd-layers":
            # Eq. 57 with eta_0 = eta / (1 - eta), for an input of another length than 1.
            share = eta / self.rule.largest_step
            eta = eta / (1 - share + share * activation.square().sum())
            gate = gate - eta * torch.outer(activation, activation)
        self.w1 = self.w1 @ gate - eta * torch.outer(error, activation)
        self.kept = self.kept * alpha

    def close_chunk(self, max_drift: float) -> None:
        """The next chunk starts from here, within the bound of law 6; with momentum, S <- mu S + what it wrote."""
        if self.share is not None:
            faded = [self.kept * matrix for matrix in self.start]
            wrote = [now - before for now, before in zip((self.w2, self.w1), faded, strict=True)]
            s2, s1 = (_drawn(self.share * s + w, max_drift) for s, w in zip(self.carried, wrote, strict=True))
            self.carried, self.w2, self.w1 = (s2, s1), faded[0] + s2, faded[1] + s1
        self.w2, self.w1 = _drawn(self.w2, max_drift), _drawn(self.w1, max_drift)
        self._start_chunk()

    def _start_chunk(self) -> None:
        self.start, self.kept = (self.w2, self.w1), torch.ones((), dtype=self.w2.dtype)
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
            x = {"query": query_x, "key": key_x, "value": value_x}
            x |= {name: module.mix[name].weight @ x[name] for name in module.mix}
            if config.head_mixing == "silu":
                x |= {name: silu(x[name]) for name in module.mix}
            answers = [self._token(head, x) for head in range(config.num_heads)]
            self._close_chunks(t + 1)
            merged = torch.cat([self._read_norm(y) for y in answers])
            rows.append(module.out.weight @ (merged * silu(module.gate.weight @ query_x)))
        return torch.stack(rows)

    def _token(self, head: int, x: dict[str, Tensor]) -> Tensor:
        memories, module, config = self.heads[head], self.module, self.config
        query, key, value = (self._projected(head, name, x[name]) for name in ("query", "key", "value"))
        eta = config.largest_step * torch.sigmoid(self._rate(head, "eta", x["key"]) + module.eta_bias[head])
        alpha = torch.ones_like(eta)
        if config.retention:
            floor = config.retention_floor
            gate = torch.sigmoid(self._rate(head, "alpha", x["key"]) + module.alpha_bias[head])
            alpha = floor + (1 - floor) * gate
        eta = torch.minimum(eta, config.largest_step * alpha)
        for memory in memories.values():
            memory.write(key, value, eta, alpha)
        return memories["memory"].read_boundary(query) if config.read == "boundary" else memories["memory"].read(query)

    def _projected(self, head: int, name: str, x: Tensor) -> Tensor:
        if name in self.heads[head]:
            return _unit(self.heads[head][name].read_boundary(x.chunk(self.config.num_heads)[head]))
        weight: Tensor = self.module.get_submodule(name).weight  # type: ignore[assignment]
        return _unit((weight @ x).chunk(self.config.num_heads)[head])

    def _rate(self, head: int, name: str, x: Tensor) -> Tensor:
        if name in self.heads[head]:
            return self.heads[head][name].read_boundary(x.chunk(self.config.num_heads)[head])[0]
        weight: Tensor = self.module.get_submodule(name).weight  # type: ignore[assignment]
        return (weight @ x)[head]

    def _close_chunks(self, num_read: int) -> None:
        for memories in self.heads:
            for name, memory in memories.items():
                chunk = self.config.chunk_memory if name == "memory" else self.config.chunk_projections
                if num_read % chunk == 0:
                    memory.close_chunk(self.config.max_drift)

    def _read_norm(self, y: Tensor) -> Tensor:
        return y / (y.square().mean() + 1e-5).sqrt() * self.module.read_norm.gain


def attend(module: CausalAttention, x_TD: Tensor) -> Tensor:
    """What a layer of Hope-Attention adds to the residual stream [T,D], a token and a head at a time."""
    num_heads, width = module.config.num_heads, module.config.head_width
    normed = x_TD / (x_TD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.norm.gain
    made = {name: normed @ module.get_submodule(name).weight.T for name in ("query", "key", "value")}  # type: ignore[operator]
    rows = []
    for t in range(x_TD.shape[0]):
        answers = []
        for head in range(num_heads):
            own = slice(head * width, (head + 1) * width)
            query = _turned(made["query"][t, own], t)
            keys = torch.stack([_turned(made["key"][s, own], s) for s in range(t + 1)])
            weights = (keys @ query / width**0.5).exp()
            answers.append(weights / weights.sum() @ made["value"][: t + 1, own])
        rows.append(module.out.weight @ torch.cat(answers))
    return torch.stack(rows)


def _turned(x: Tensor, place: int) -> Tensor:
    """Rotary positions as the complex numbers they are."""
    half = x.shape[0] // 2
    angle = place * 10_000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag])


def _memories(module: SelfModifyingTitans, head: int, config: ModelConfig) -> dict[str, PlainMemory]:
    made = {}
    for name, (stack, at) in places(config).items():
        initial = module.initial[stack]
        assert isinstance(initial, InitialMemory)
        start = initial.w2.detach()[head, at], initial.w1.detach()[head, at]
        nothing = torch.zeros_like(start[0]), torch.zeros_like(start[1])
        fixed, moving = (start, nothing) if config.decay_towards == "initial" else (nothing, start)
        share = torch.sigmoid(module.momentum_bias[stack][head]) if config.momentum else None
        rule = Rule(config.write_rule, config.objective, config.largest_step)
        made[name] = PlainMemory(fixed, moving[0], moving[1], stack != "rates", rule, share)
    return made


def _drawn(matrix: Tensor, limit: float) -> Tensor:
    return matrix * min(1.0, limit / max(float(matrix.norm()), 1e-6))


def _unit(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x)
    return x / length

"""What a token asks of the memories (HOPE.md eq. 83, 86, 94): its query, key, value, step size and retention.

Each comes from a memory that writes itself, or from a Linear that does not: `adaptive` in the configuration says
which. Knows how memories are read; not how they are written, nor where they are kept.

Shapes: B rows, T tokens, D width, H heads, K head width, N tokens of a piece.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import ModelConfig
from engine.model.layers import CausalFilters, RMSNorm, unit
from engine.model.update_rule import Weights, read

State = dict[str, Tensor]


def stacks_of(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The stacks of memories that share a shape, and who lies in each, in order; empty stacks are left out."""
    rates = ("eta", "alpha") if config.retention else ("eta",)
    stacks = {
        "memory": ("memory",),
        "projections": tuple(name for name in ("key", "value", "query") if name in config.adaptive),
        "rates": tuple(name for name in rates if name in config.adaptive),
    }
    return {stack: names for stack, names in stacks.items() if names}


class Projections(nn.Module):
    """The static part of the projections, and the reading of the adaptive part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stacks = stacks_of(config)
        width, heads = config.width, config.num_heads
        self.norm = RMSNorm(width)
        self.filters = CausalFilters(width, 3, config.conv_width)
        self.static = tuple(name for name in ("query", "key", "value") if name not in config.adaptive)
        for name in self.static:
            linear = nn.Linear(width, width, bias=False)
            if name == "query" and "key" in config.adaptive and config.head_mixing != "silu":
                # A memory begins as the identity; a reader that did not would have to find the keys first.
                nn.init.eye_(linear.weight)
            self.add_module(name, linear)
        mixed = self.stacks.get("projections", ()) if config.head_mixing != "none" else ()
        self.mix = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in mixed})
        if config.head_mixing == "linear":
            for mix in self.mix.parameters():
                nn.init.eye_(mix)
        rates = ("eta", "alpha") if config.retention else ("eta",)
        self.static_rates = tuple(name for name in rates if name not in config.adaptive)
        for name in self.static_rates:
            self.add_module(name, nn.Linear(width, heads, bias=False))
        # Spread over the heads: a retention horizon from some 500 to 100,000 tokens, as training sees too few tokens in
        # a row to learn the long ones, and an eta of 0.2 to 0.6 of the largest where a chunk is one token. In a longer
        # chunk all errors are taken at its start: with such steps the memories answer to what they wrote themselves,
        # over and over, and gradients explode with the text's length. This power keeps them bounded (measured).
        start = torch.linspace(-1.5, 0.5, heads) - 2 / 3 * math.log(config.chunk_projections)
        self.eta_bias = nn.Parameter(start)
        if config.retention:
            self.alpha_bias = nn.Parameter(torch.linspace(4.5, 10.0, heads))

    def prepare(self, query_x_BTD: Tensor, key_x_BTD: Tensor, value_x_BTD: Tensor) -> State:
        """What can be done for all tokens at once, by name, each [B,H,T,...].

        `query`, `key`, `value` (unit length), `eta` and `alpha` where a Linear makes them; `query_x`, `key_x` and
        `value_x`, what the memories read, where one does.
        """
        x = {"query": query_x_BTD, "key": key_x_BTD, "value": value_x_BTD}
        curved = self.config.head_mixing == "silu"
        x |= {name: functional.silu(mix(x[name])) if curved else mix(x[name]) for name, mix in self.mix.items()}
        parts: State = {}
        for name in self.static:
            parts[name] = unit(self._heads(getattr(self, name)(x[name])))
        for name in self.static_rates:
            parts[name] = getattr(self, name)(key_x_BTD).transpose(1, 2).unsqueeze(-1)
        for name in self.stacks.get("projections", ()):
            parts[f"{name}_x"] = self._heads(x[name])
        if "rates" in self.stacks and "key_x" not in parts:
            parts["key_x"] = self._heads(x["key"])
        return parts

    def project(self, parts: State, weights: dict[str, Weights]) -> tuple[Tensor, State]:
        """Queries [B,H,N,K] of a piece, and its `key`, `value` and `rates` (eta and 1 - alpha).

        Args:
            parts: as `prepare` made them, of the piece's tokens.
            weights: the stacks' weights at the chunk's start, from which the adaptive parts are read.
        """
        # What the memories make goes in beside what the Linears have made.
        made, names = dict(parts), self.stacks.get("projections", ())
        if names:
            x = torch.stack([parts[f"{name}_x"] for name in names], 2)
            projected = unit(read(weights["projections"].total(), x, residual=True))
            made.update(zip(names, projected.unbind(2), strict=True))
        names = self.stacks.get("rates", ())
        if names:
            out = read(weights["rates"].total(), parts["key_x"].unsqueeze(2), residual=False)
            made.update(zip(names, out.unbind(2), strict=True))
        return made["query"], {"key": made["key"], "value": made["value"], "rates": self._bounded(made)}

    def _bounded(self, made: State) -> Tensor:
        largest = self.config.largest_step
        eta = largest * torch.sigmoid(made["eta"] + self.eta_bias[:, None, None])
        if not self.config.retention:
            return torch.cat([eta, torch.zeros_like(eta)], -1)
        span = 1.0 - self.config.retention_floor
        forget = span * torch.sigmoid(-(made["alpha"] + self.alpha_bias[:, None, None]))
        # eta <= alpha keeps the delta rule's eigenvalues at or above zero, eta <= 2 alpha within one of it.
        eta = torch.minimum(eta, largest * (1.0 - forget))
        # 1 - alpha is what is stored: near zero it keeps its digits in any precision.
        return torch.cat([eta, forget], -1)

    def _heads(self, x_BTD: Tensor) -> Tensor:
        rows, tokens, _ = x_BTD.shape
        return x_BTD.view(rows, tokens, self.config.num_heads, self.config.head_width).transpose(1, 2)

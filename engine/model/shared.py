"""The levels that sessions share: what a tenant's generation holds, and how it joins a session's memory and leaves it.

In a forward pass they are tensors of the memory like all others; a session's stored memory never holds them.
Knows no store and no numbers of generations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.model.hope import Hope, Memory
from engine.model.portable import level_of

TENANT = "tenant"


def initial_shared(model: Hope) -> Memory:
    """The tenant's levels where nothing was learned (batch size 1); empty where the model has none."""
    shared: Memory = {}
    for level in model.config.levels:
        if level.scope == TENANT:
            shared |= model.initial_level(level, 1)
    return shared


def with_shared(memory: Memory, shared: Mapping[str, Tensor]) -> Memory:
    """A memory [B] that knows what a generation (batch size 1) does."""
    rows = len(next(iter(memory.values())))
    return {**memory, **{name: value.expand(rows, *value.shape[1:]) for name, value in shared.items()}}


def session_part(memory: Memory, model: Hope) -> Memory:
    """A memory without what sessions share."""
    shared = {level.name for level in model.config.levels if level.scope == TENANT}
    return {name: value for name, value in memory.items() if level_of(name) not in shared}


def pack_shared(shared: Memory) -> dict[str, Tensor]:
    """The tensors of a generation as they are stored: floats in bfloat16, without a batch dimension."""
    return {
        name: (value[0].to(torch.bfloat16) if value.is_floating_point() else value[0]).contiguous()
        for name, value in shared.items()
    }


def unpack_shared(stored: Mapping[str, Tensor], model: Hope) -> Memory:
    """The generation that `pack_shared` packed (batch size 1), float32.

    Raises:
        ValueError: it is not one of this model's: a name or a shape differs, or a number is none.
    """
    start = initial_shared(model)
    if stored.keys() != start.keys():
        raise ValueError("the generation's tensors are not this model's")
    shared = {name: stored[name].unsqueeze(0).to(value.dtype) for name, value in start.items()}
    for name, value in shared.items():
        if value.shape != start[name].shape or not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name}' of the generation is damaged")
    return shared

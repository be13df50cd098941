"""Baselines small enough to try a law on in a moment, with several chunks and windows in a short text.

Knows no test. The memory of a full attention grows: `stacked` and `settled` make rows of different length comparable.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from engine.model.baselines.common import Baseline
from engine.model.baselines.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from engine.model.baselines.samba import Samba, SambaConfig
from engine.model.baselines.transformer import Transformer, TransformerConfig
from engine.model.hope import POSITION, Memory

NAMES = ("transformer", "transformer-window", "samba", "gated-deltanet")
VOCAB, WINDOW, CHUNK, LENGTH = 64, 12, 8, 53


@cache
def tiny(name: str, double: bool = False) -> Baseline:
    """An untrained model of width 32 and two layers, in evaluation mode; not to be changed."""
    torch.manual_seed(3)
    model = fresh(name).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(10)
    return model.double() if double else model


def fresh(name: str) -> Baseline:
    """A model of that shape as it starts."""
    shape = {"vocab_size": VOCAB, "width": 32, "num_layers": 2, "num_heads": 2, "hidden": 40}
    if name == "samba":
        return Samba(SambaConfig(**shape, window=WINDOW, state_size=12, chunk=CHUNK))
    if name == "gated-deltanet":
        return GatedDeltaNet(GatedDeltaNetConfig(**shape, chunk=CHUNK))
    return Transformer(TransformerConfig(**shape, window=WINDOW if name.endswith("window") else None))


def some_tokens(num_rows: int, num_tokens: int, seed: int = 0) -> Tensor:
    """Token ids [B,T] of anything."""
    return torch.randint(0, VOCAB, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(model: Baseline, tokens_BT: Tensor, sizes: list[int], memory: Memory | None = None) -> tuple[Tensor, Memory]:
    """Logits and memory after calls of these sizes, one after another; a new memory where none is given."""
    memory = model.initial_memory(tokens_BT.shape[0]) if memory is None else memory
    parts = []
    for piece in torch.split(tokens_BT, sizes, 1):
        logits, memory = model(piece, memory)
        parts.append(logits)
    return torch.cat(parts, 1), memory


def stacked(memories: list[Memory]) -> Memory:
    """Memories of single rows as one batch: caches get empty slots in front, up to the longest."""
    batch = {}
    for name in memories[0]:
        values = [memory[name] for memory in memories]
        if name.startswith("cache."):
            longest = max(value.shape[2] for value in values)
            values = [functional.pad(value, (0, 0, longest - value.shape[2], 0)) for value in values]
        batch[name] = torch.cat(values)
    return batch


def row_of(memory: Memory, row: int) -> Memory:
    """One row of a batch's memory, batch size 1."""
    return {name: value[row : row + 1] for name, value in memory.items()}


def settled(memory: Memory) -> Memory:
    """A single row's memory without its caches' empty slots, which must hold zeros."""
    position, found = int(memory[POSITION]), dict(memory)
    for name, value in memory.items():
        if name.startswith("cache."):
            first = max(value.shape[2] - position, 0)
            assert not value[:, :, :first].any(), name
            found[name] = value[:, :, first:]
    return found

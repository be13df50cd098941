"""Memories of single rows put together into a batch, and taken out of it again. Knows no turns and no clocks.

A level that sessions share is in the memory of those alone whose tenant has a generation of it; in a batch, the other
rows hold zeros for it, which say that nothing was learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.model.hope import Memory


def stacked(memories: Sequence[Mapping[str, Tensor]]) -> Memory:
    """One memory of all rows of these memories, in their order; a single one is not copied."""
    if len(memories) == 1:
        return dict(memories[0])
    samples = {name: value for memory in memories for name, value in memory.items()}
    counts = [len(next(iter(memory.values()))) for memory in memories]
    batch = {}
    for name, sample in samples.items():
        rows = [
            memory[name] if name in memory else sample.new_zeros(count, *sample.shape[1:])
            for memory, count in zip(memories, counts, strict=True)
        ]
        batch[name] = torch.cat(rows)
    return batch


def row_at(batch: Mapping[str, Tensor], at: int) -> Memory:
    """A copy of one row's memory (batch size 1)."""
    return {name: value[at : at + 1].clone() for name, value in batch.items()}

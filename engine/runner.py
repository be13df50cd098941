"""The batch on the device: the memories of the running rows stacked, one model pass a step.

Rows keep their place until they leave, so memories are copied only when the batch changes. Knows no turns and no
clocks.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.model.hope import Hope, Memory
from engine.tokenizer import PAD


class Runner:
    """Runs tokens through the model for many sessions at once, each with its own memory."""

    def __init__(self, model: Hope) -> None:
        self.model = model
        self._rows: list[int] = []
        self._batch: Memory = {}

    def enter(self, row: int, memory: Memory) -> None:
        """A row (batch size 1) joins the batch."""
        if self._rows:
            # A level that sessions share is there only for those whose tenant has a generation of it.
            batch, memory = _filled(self._batch, memory, len(self._rows)), _filled(memory, self._batch, 1)
            self._batch = {name: torch.cat([value, memory[name]]) for name, value in batch.items()}
        else:
            self._batch = dict(memory)
        self._rows.append(row)

    def leave(self, row: int) -> Memory:
        """A row leaves; returns its memory (batch size 1)."""
        at = self._rows.index(row)
        memory = self.memory(row)
        self._rows.pop(at)
        kept = [i for i in range(len(self._rows) + 1) if i != at]
        self._batch = {name: value[kept] for name, value in self._batch.items()} if kept else {}
        return memory

    def memory(self, row: int) -> Memory:
        """A copy of a row's memory as it is now (batch size 1)."""
        at = self._rows.index(row)
        return {name: value[at : at + 1].clone() for name, value in self._batch.items()}

    def replace(self, row: int, tensors: Memory) -> None:
        """Sets some of a row's memory tensors (batch size 1)."""
        at = self._rows.index(row)
        for name, value in tensors.items():
            stacked = self._batch[name].clone()
            stacked[at] = value[0]
            self._batch[name] = stacked

    @torch.no_grad()
    def step(self, tokens: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Reads the given tokens of each row; returns logits [T_row,V] after each of them."""
        counts = [len(tokens.get(row, ())) for row in self._rows]
        width = max(counts, default=0)
        if not width:
            return {}
        ids = torch.full((len(counts), width), PAD)
        for at, row in enumerate(self._rows):
            if counts[at]:
                ids[at, : counts[at]] = torch.tensor(tokens[row])
        lengths = None if set(counts) == {width} else torch.tensor(counts)
        logits_BTV, self._batch = self.model(ids, self._batch, lengths)
        return {row: logits_BTV[at, : counts[at]] for at, row in enumerate(self._rows) if counts[at]}


def _filled(memory: Memory, other: Memory, num_rows: int) -> Memory:
    """The memory with zeros, which say that nothing was learned, for what only the other one holds."""
    missing = {name: value for name, value in other.items() if name not in memory}
    return memory | {name: value.new_zeros(num_rows, *value.shape[1:]) for name, value in missing.items()}

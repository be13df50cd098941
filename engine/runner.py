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
from engine.model.rows import row_at, stacked
from engine.tokenizer import PAD


class Runner:
    """Runs tokens through the model for many sessions at once, each with its own memory."""

    def __init__(self, model: Hope) -> None:
        self.model = model
        self._rows: list[int] = []
        self._batch: Memory = {}

    def enter(self, memories: Mapping[int, Memory]) -> None:
        """Rows (batch size 1 each) join the batch, in one copy of it."""
        if memories:
            inside = [self._batch] if self._rows else []
            self._batch = stacked([*inside, *memories.values()])
            self._rows.extend(memories)

    def leave(self, rows: Sequence[int]) -> dict[int, Memory]:
        """Rows leave, in one copy of the batch; returns the memory of each (batch size 1)."""
        memories = {row: self.memory(row) for row in rows}
        kept = [at for at, row in enumerate(self._rows) if row not in memories]
        if memories:
            self._rows = [self._rows[at] for at in kept]
            self._batch = {name: value[kept] for name, value in self._batch.items()} if kept else {}
        return memories

    def memory(self, row: int) -> Memory:
        """A copy of a row's memory as it is now (batch size 1)."""
        return row_at(self._batch, self._rows.index(row))

    def replace(self, memories: Mapping[int, Memory]) -> None:
        """Sets some of the memory tensors of rows (batch size 1 each)."""
        changed: set[str] = set()
        for row, tensors in memories.items():
            at = self._rows.index(row)
            for name, value in tensors.items():
                if name not in changed:  # what was handed over, or is shared with it, stays as it was
                    self._batch[name] = self._batch[name].clone()
                    changed.add(name)
                self._batch[name][at] = value[0]

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

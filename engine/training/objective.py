"""The loss of rows of a batch, and the model's guesses: the one door through which training reads a model.

A module of its own because DDP and FSDP hook on `forward`, and Hope's training does not go through its own.
Knows neither batches, nor optimizers, nor how many processes there are.

Shapes: B rows, T tokens, N chosen targets among all B T.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.model.baselines.common import Baseline
from engine.model.hope import Hope, Memory

PRECISIONS = ("float32", "bfloat16")


class Objective(nn.Module):
    """A model and its loss.

    Args:
        model: read as it is; its parameters are the module's.
        precision: `bfloat16` runs the dense products in it (autocast); weights and optimizer stay float32. The
            memories do so where `keep_segments_in_float32` was called.

    Raises:
        InvalidRequest: there is no such precision.
    """

    def __init__(self, model: Hope | Baseline, precision: str = "float32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InvalidRequest(f"precision is one of {', '.join(PRECISIONS)}, not '{precision}'", param="precision")
        self.model, self.precision = model, precision
        # Set where parameters are in pieces, from which no memory can be made: what one is, but for the rows.
        self.blank: Memory | None = None

    def initial_memory(self, num_rows: int) -> Memory:
        """Memory of `num_rows` rows that have read nothing, without the levels' differences."""
        if self.blank is None:
            return self.model.initial_memory(num_rows, levels=False)
        return {name: value.new_zeros(num_rows, *value.shape[1:]) for name, value in self.blank.items()}

    def forward(
        self, tokens_BT: Tensor, target_BT: Tensor, weight_BT: Tensor, chosen_N: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Sum of weighted next-token losses over the chosen targets, and what the rows remember.

        Args:
            target_BT, weight_BT: the next token and its weight.
            chosen_N: places of the flattened rows that carry loss; there may be none.
            memory: what the rows begin with; None where they have read nothing.
        """
        with self._casting(tokens_BT):
            memory = self.initial_memory(tokens_BT.shape[0]) if memory is None else memory
            hidden, after = self.model.hidden(tokens_BT, memory)
            logits = self.model.logits(hidden.flatten(0, 1).index_select(0, chosen_N))
        target = target_BT.flatten().index_select(0, chosen_N)
        weight = weight_BT.flatten().index_select(0, chosen_N)
        losses = functional.cross_entropy(logits.float(), target, reduction="none")
        return (losses * weight).sum(), after

    @torch.no_grad()
    def guess(self, tokens_BT: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """The most likely next token everywhere [B,T], and what the rows remember."""
        # What training compiled is for its own rows: for others it would be compiled again.
        with self._casting(tokens_BT), torch.compiler.set_stance("force_eager"):
            memory = self.initial_memory(tokens_BT.shape[0]) if memory is None else memory
            hidden, after = self.model.hidden(tokens_BT, memory)
            # Row by row: the logits of a whole batch are large.
            rows = [self.model.logits(row).argmax(-1) for row in hidden]
        return torch.stack(rows), after

    def _casting(self, tokens_BT: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(tokens_BT.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

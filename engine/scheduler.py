"""Which sessions run in the next step, and how many tokens each: numbers in, a batch out. No torch, no I/O.

Every admitted row runs in every step. A speaking row takes its one token; reading rows take as many as keep the
padded batch within a budget, so that a long message does not make the speakers wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a row wants: `pending` tokens to be read (1 for a speaking row), from position `position`."""

    row: int
    pending: int
    position: int


@dataclass(frozen=True)
class Share:
    """What a row gets in this step."""

    row: int
    count: int


def schedule(demands: Sequence[Demand], *, chunk: int, token_budget: int) -> list[Share]:
    """The next step's batch.

    Args:
        demands: the admitted rows.
        chunk: tokens between memory updates; no share crosses one (a step is then one pass of the model).
        token_budget: most token places, padding included, of a step that mixes readers and speakers.
    """
    if not demands:
        return []
    mixed = any(d.pending == 1 for d in demands) and any(d.pending > 1 for d in demands)
    longest = max(1, token_budget // len(demands)) if mixed else chunk
    return [Share(d.row, min(d.pending, longest, chunk - d.position % chunk)) for d in demands]


def admit(waiting: int, running: int, *, max_rows: int) -> int:
    """How many waiting turns enter the batch now."""
    return max(0, min(waiting, max_rows - running))

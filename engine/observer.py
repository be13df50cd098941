"""What the engine and the worker report as they go. Knows no metric."""

from __future__ import annotations

from typing import Protocol

from engine.core import Turn


class Observer(Protocol):
    """What the engine and the worker report as they go; `server/metrics.py` counts it, tests may record it.

    Every method is called from any thread and must not block.
    """

    def turn_finished(self, outcome: str, turn: Turn | None, queue_s: float, total_s: float) -> None:
        """A turn ended: `completed`, `cancelled`, `deadline`, `refused`, `failed` or `replayed`."""

    def first_token(self, seconds: float) -> None:
        """Time from the arrival of a turn to its first piece of text."""

    def token_interval(self, seconds: float) -> None:
        """Time between two decoded tokens of one turn."""

    def tokens(self, kind: str, count: int) -> None:
        """Tokens passed: kind `prompt`, `generation` or `learned`."""

    def queue(self, waiting: int, running: int) -> None:
        """Turns waiting and turns running, at this moment."""

    def batch(self, rows: int, seconds: float) -> None:
        """One step of the engine over `rows` sessions."""

    def memory_update(self, level: str, outcome: str, update_norm: float) -> None:
        """A level took a step: outcome `applied`, `clipped`, `skipped` (nothing moved) or `rejected`."""

    def stored(self, operation: str, outcome: str, seconds: float, size_bytes: int) -> None:
        """A memory was loaded or committed: `load` (outcome: `resident`, `redis` or `other_model`) or `commit`."""

    def resident(self, sessions: int, size_bytes: int) -> None:
        """Sessions and bytes in this process's cache."""

    def consolidation(self, outcome: str, seconds: float, num_turns: int) -> None:
        """A consolidation ended: `accepted`, `empty`, `fenced`, `failed`; a tenant's: `generation_` and its status."""

    def set_aside(self, outcome: str, count: int) -> None:
        """Sessions spoiled a candidate: `waiting`, they are tried again next time; `excluded`, no more."""

"""An observer for evaluations: it keeps the one thing they ask for, outcomes of memory updates, and drops the rest."""

from __future__ import annotations

from collections import Counter

from engine.core import Turn


class SilentObserver:
    """Counts memory updates by level and outcome."""

    def __init__(self) -> None:
        self.updates: Counter[tuple[str, str]] = Counter()

    def turn_finished(self, outcome: str, turn: Turn | None, queue_s: float, total_s: float) -> None:
        """Not of interest here."""

    def first_token(self, seconds: float) -> None:
        """Not of interest here."""

    def token_interval(self, seconds: float) -> None:
        """Not of interest here."""

    def tokens(self, kind: str, count: int) -> None:
        """Not of interest here."""

    def queue(self, waiting: int, running: int) -> None:
        """Not of interest here."""

    def batch(self, rows: int, seconds: float) -> None:
        """Not of interest here."""

    def memory_update(self, level: str, outcome: str, update_norm: float) -> None:
        """Counted."""
        self.updates[level, outcome] += 1

    def stored(self, operation: str, outcome: str, seconds: float, size_bytes: int) -> None:
        """Not of interest here."""

    def resident(self, sessions: int, size_bytes: int) -> None:
        """Not of interest here."""

    def consolidation(self, outcome: str, seconds: float, num_turns: int) -> None:
        """Not of interest here."""

    def set_aside(self, outcome: str, count: int) -> None:
        """Not of interest here."""

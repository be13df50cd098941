"""What a session's consolidation takes in and how hard it works: numbers in, numbers out.

Which turns are replayed, what each of them weighs, how many steps that takes. Knows no torch, no store and no
clock: when a session is handed over is the engine's and the queue's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReplayPolicy:
    """Thresholds of a consolidation. The bounds keep one portion within seconds of one slow core.

    Attributes:
        most_turns, most_tokens: a portion takes turns up to either, but always one. It is committed by itself,
            so that a kill costs one portion at most.
        piece_tokens: a longer turn is replayed in pieces of this size.
        rows_per_batch: pieces that run together in one pass.
        num_steps: gradient steps over the whole portion.
        rate_per_turn, most_rate: factor on the level's learning rate. A step is the mean over the turns, so
            the factor grows with them, else each would move less the more there are.
        surprise_floor, surprise_ceiling: bounds of a turn's weight, relative to the portion's mean surprise.
    """

    most_turns: int = 16
    most_tokens: int = 4096
    piece_tokens: int = 256
    rows_per_batch: int = 8
    num_steps: int = 16
    rate_per_turn: float = 2.5
    most_rate: float = 20.0
    surprise_floor: float = 0.5
    surprise_ceiling: float = 2.0

    def next_turns(self, num_turns: int, num_consolidated: int) -> range:
        """Indices of the turns that may be taken in next, oldest first; empty where there is nothing new."""
        first = min(num_consolidated, num_turns)
        return range(first, min(num_turns, first + self.most_turns))

    def num_within_budget(self, tokens_by_turn: Sequence[int]) -> int:
        """How many of these turns, from the first on, one portion takes: at least one, if there is one."""
        total = 0
        for count, tokens in enumerate(tokens_by_turn):
            total += tokens
            if count > 0 and total > self.most_tokens:
                return count
        return len(tokens_by_turn)

    def weights(self, surprise_by_turn: Sequence[float]) -> list[float]:
        """What each turn counts for: its surprise over the mean, bounded; they add up to 1."""
        if not surprise_by_turn:
            return []
        mean = sum(surprise_by_turn) / len(surprise_by_turn)
        if mean <= 0.0:
            return [1.0 / len(surprise_by_turn)] * len(surprise_by_turn)
        bounded = [min(max(value / mean, self.surprise_floor), self.surprise_ceiling) for value in surprise_by_turn]
        return [value / sum(bounded) for value in bounded]

    def rate(self, num_turns: int) -> float:
        """Factor on the level's learning rate for a portion of so many turns."""
        return min(self.most_rate, self.rate_per_turn * num_turns)

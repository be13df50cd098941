"""How likely each token of a reply was: plain facts, without torch and without a tokenizer.

Of the model's own distribution over what it may say, before temperature and top_p; natural logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A token that could stand in one place of a reply.

    Attributes:
        text: as it would read there; U+FFFD stands for a part of a character.
        data: its bytes, from which whole characters are joined; None for the end of the reply, which has none.
    """

    text: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True)
class SaidToken(Candidate):
    """A token that was said; `top` holds the likeliest in its place, the likeliest first."""

    top: tuple[Candidate, ...] = ()

"""How a turn's events are worded for one kind of client, and how our own are.

Serves Server-Sent Events and websockets alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from engine import Candidate, HopeError, SaidToken, TurnCancelled, TurnCreated, TurnEvent
from server.errors import error_body
from server.schemas import turn_event

# The least logarithm that is told, as OpenAI's clients know it: it means "very unlikely".
LEAST_LOGPROB = -9999.0


class Wording(Protocol):
    """Words for the events of one turn, in their order."""

    def event(self, event: TurnEvent) -> Iterable[dict[str, Any]]:
        """What is sent of an event: one or several objects."""

    def failure(self, error: HopeError) -> Iterable[dict[str, Any]]:
        """What is sent last, where the turn fails after its first event."""


class TurnWording:
    """Our own words (docs/API.md). `told_by_id`: an error says which turn failed, and a cancelled turn is no error."""

    def __init__(self, *, told_by_id: bool = False) -> None:
        self._told_by_id = told_by_id
        self._turn_id: str | None = None

    def event(self, event: TurnEvent) -> list[dict[str, Any]]:
        """See `Wording`."""
        if isinstance(event, TurnCreated):
            self._turn_id = event.turn_id
        return [turn_event(event)]

    def failure(self, error: HopeError) -> list[dict[str, Any]]:
        """See `Wording`."""
        if self._told_by_id and isinstance(error, TurnCancelled):
            return [{"type": "turn.cancelled", "turn_id": self._turn_id}]
        named = {"turn_id": self._turn_id} if self._told_by_id and self._turn_id else {}
        return [{"type": "error", **error_body(error), **named}]


def logprob_entries(tokens: Iterable[SaidToken], *, no_bytes: list[int] | None = None) -> list[dict[str, Any]]:
    """Tokens with their logprobs in OpenAI's shape; `no_bytes` stands for the bytes of what has none."""
    return [
        {**_entry(token, no_bytes), "top_logprobs": [_entry(other, no_bytes) for other in token.top]}
        for token in tokens
    ]


def _entry(token: Candidate, no_bytes: list[int] | None) -> dict[str, Any]:
    data = no_bytes if token.data is None else list(token.data)
    return {"token": token.text, "logprob": max(token.logprob, LEAST_LOGPROB), "bytes": data}

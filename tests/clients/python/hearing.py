"""What a listener makes of the events of a turn."""

from __future__ import annotations

from collections.abc import Sequence

from hope_client import Turn, TurnEvent


def completed(events: Sequence[TurnEvent]) -> Turn:
    """The turn that they ended with."""
    last = events[-1]
    assert last["type"] == "turn.completed"
    return last["turn"]


def heard(events: Sequence[TurnEvent]) -> str:
    """What was seen of the reply at the end."""
    seen = ""
    for event in events:
        if event["type"] == "turn.restarted":
            seen = ""
        elif event["type"] == "turn.token":
            seen += event["text"]
    return seen

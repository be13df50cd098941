"""A turn's place in its session's past: what stood before it, and the version that so many turns left. Reads only.

Knows no key: it asks the store.
"""

from __future__ import annotations

from engine.core import Session, Turn
from engine.errors import Conflict, NotFound, OtherModel
from engine.sessions.store import SessionStore


async def num_turns_until(store: SessionStore, tenant: str, session: Session, turn_id: str) -> int:
    """How many turns the session had when this one was its last; NotFound where it is not in the transcript."""
    following, _ = await store.turns(tenant, session.id, 1, turn_id)
    return following[0].index if following else session.num_turns


async def turn_and_last(store: SessionStore, tenant: str, session_id: str, turn_id: str) -> tuple[Turn, Turn | None]:
    """A turn of the transcript and the one before it; NotFound where there is no such turn, or session."""
    session = await store.get(tenant, session_id)
    index = await num_turns_until(store, tenant, session, turn_id) - 1
    found = await store.turns_at(tenant, session_id, max(0, index - 1), 2 if index else 1)
    if not found or found[-1].id != turn_id:
        raise NotFound(f"this session has no turn '{turn_id}'", param="after")  # it was undone between the looks
    return found[-1], found[0] if index else None


async def version_with(store: SessionStore, tenant: str, session: Session, num_turns: int) -> int:
    """The newest version that had so many turns; what the worker made of one is part of it.

    Raises:
        Conflict: it is not retained.
    """
    if num_turns == 0:
        return 0
    versions = await store.versions(tenant, session.id)
    found = next((one.version for one in versions if one.num_turns == num_turns), None)
    if found is None:
        raise Conflict(
            "the conversation goes back further than the session's versions are kept: go on from its end, or use "
            "a new session",
            param="messages",
        )
    return found


def of_another_model(version: int) -> OtherModel:
    """What is told to who would go back to a version that did not grow in the model that is served."""
    return OtherModel(
        f"version {version} of the session's memory is of another model than the one that is served, so it cannot be "
        "gone back to: go on from the session's end, choose a later version, or 0, which has read nothing",
        param="version",
    )

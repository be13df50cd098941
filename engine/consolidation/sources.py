"""What a tenant's consolidation takes in: the new turns of the sessions that contribute, in fair shares.

Reads the store and writes nothing; knows no model.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from engine.consolidation.policy import GenerationPolicy
from engine.core import Session, Turn
from engine.sessions.generations import Generation, id_hash, session_hash
from engine.sessions.store import SessionStore

PAGE = 100


@dataclass(frozen=True)
class Source:
    """A session's turns to take in.

    Attributes:
        name: the session's hash.
        session_id: its id.
        mark: turns of it that will have been taken in, those before included.
        turns: without those that are no language, or that say again what was said.
    """

    name: str
    session_id: str
    mark: int
    turns: tuple[Turn, ...]


async def gather(
    store: SessionStore,
    tenant: str,
    learned: Mapping[str, int],
    policy: GenerationPolicy,
    without: str | None = None,
    excluded: Container[str] = (),
) -> list[Source]:
    """Every contributing session with turns that are not in `learned` yet.

    Args:
        learned: turns taken in so far, by session hash.
        without: id of a session to leave out.
        excluded: hashes of more of them.
    """
    waiting: list[tuple[Session, str, int]] = []
    after: str | None = None
    more = True
    while more:
        sessions, more = await store.list(tenant, PAGE, after)
        for session in sessions:
            name = session_hash(tenant, session)
            known = learned.get(name, 0)
            left_out = session.id == without or name in excluded
            if session.contribute and session.num_turns > known and not left_out:
                waiting.append((session, name, known))
        after = sessions[-1].id if sessions else None
    # First come, first served: a flood of new sessions makes no older one wait.
    waiting.sort(key=lambda found: (found[0].created_at, found[0].id))
    # An equal part of the room for each, so that one that talks much does not crowd out the others.
    each = max(1, min(policy.most_turns_of_session, policy.most_turns // max(1, len(waiting))))
    found = []
    for session, name, known in waiting[: policy.most_turns]:
        turns = await store.turns_at(tenant, session.id, known, each)
        if turns:
            found.append(Source(name, session.id, known + len(turns), tuple(worth_learning(turns, policy))))
    return found


def worth_learning(turns: Sequence[Turn], policy: GenerationPolicy) -> list[Turn]:
    """The turns without noise, and of those that say the same only the last one."""
    latest = {_plain(turn.message): turn for turn in turns if turn.memory.surprise <= policy.surprise_ceiling}
    return sorted(latest.values(), key=lambda turn: turn.index)


def base_without(
    tenant: str, kept: Mapping[int, Generation], active: int, without: str | None
) -> tuple[int, Generation | None]:
    """The generation to begin from: the active one, or its last ancestor that has not learned from a session.

    Returns:
        Its number and the generation; 0 and None for the checkpoint alone, also where an ancestor is not kept.
    """
    number = active
    while (generation := kept.get(number)) is not None:
        known = without is not None and any(name.startswith(id_hash(tenant, without)) for name in generation.learned)
        if not known:
            return number, generation
        number = generation.parent
    return 0, None


def lineage(kept: Mapping[int, Generation], number: int) -> set[int]:
    """A generation and its ancestors, as far as they are kept."""
    found: set[int] = set()
    while (generation := kept.get(number)) is not None:
        found.add(number)
        number = generation.parent
    return found


def _plain(message: str) -> str:
    return " ".join(message.lower().split())

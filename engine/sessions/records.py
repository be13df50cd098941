"""The facts that the store keeps beside a memory, and their form in Redis: hashes of text and JSON.

Knows no client and no key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from engine.core import LevelReport, MemoryReport, Said, Session, Timing, Turn, Usage


@dataclass(frozen=True)
class Lease:
    """The right to commit to a session, until it expires or another holder takes it.

    Attributes:
        owner: unlike that of any other holder, on this replica or another.
        fence: grows with every holder; an old one cannot commit.
    """

    tenant: str
    session_id: str
    owner: str
    fence: int


@dataclass(frozen=True)
class Head:
    """A session with what only the engine and the worker need to know.

    Attributes:
        num_consolidated_turns: turns of the transcript that the worker has folded in so far.
        history: digest of everything said so far (`chain.py`).
        surprise: sum over the turns that it has not folded in, in nats.
    """

    session: Session
    num_consolidated_turns: int
    history: str = ""
    surprise: float = 0.0


@dataclass(frozen=True)
class Commit:
    """A new version of a session's memory.

    Attributes:
        memory: the bytes, as `snapshot.pack` made them.
        levels: names of the levels that changed.
        before: what was read before the turn's message.
        turn: what goes into the transcript; None for a consolidation, which then counts every turn so far as
            consolidated unless `num_consolidated_turns` says less.
        num_tokens: tokens that this turn added to the session's count.
        idempotency_key: the caller's, if one was given.
        request_digest: of the request's body; the key with another digest is a conflict.
        commit_id: unlike that of any other commit; the same again is recognised and not repeated.
        generation: the session moves to this one; by default the turn's, else it stays.
        surprise: of the turns that a consolidation took in, all together.
        back_to: `memory` is this earlier version's: what came after it, turns and versions, is undone.
    """

    memory: bytes
    levels: tuple[str, ...]
    turn: Turn | None
    num_tokens: int
    idempotency_key: str | None
    request_digest: str
    commit_id: str
    num_consolidated_turns: int | None = None
    generation: int | None = None
    surprise: float = 0.0
    back_to: Version | None = None
    before: tuple[Said, ...] = ()


@dataclass(frozen=True)
class Version:
    """A retained version: all that is needed to find it, and to be again what the session was then.

    Attributes:
        mark: names the memory's chunks.
        digest: SHA-256 of the memory's bytes.
        history, surprise: as in `Head`.
    """

    version: int
    commit_id: str
    turn_id: str | None
    created_at: str
    size_bytes: int
    mark: str
    num_chunks: int
    digest: str
    levels: tuple[str, ...]
    generation: int
    num_turns: int
    num_tokens: int
    num_consolidated_turns: int
    history: str = ""
    surprise: float = 0.0


def nothing(session: Session) -> Version:
    """Version 0 of a session, which is nowhere stored."""
    return Version(0, "", None, session.created_at, 0, "", 0, "", (), 0, 0, 0, 0)


@dataclass(frozen=True)
class Work:
    """A session that the worker has claimed, or a tenant: then without a session's id.

    Attributes:
        token: proves the claim.
        attempt: 1 for the first claim since the session was last finished.
    """

    tenant: str
    session_id: str
    token: str
    attempt: int


def now_iso() -> str:
    """The time as the wire writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def write_session(session: Session) -> dict[str, str]:
    """A session's fields of the head hash."""
    return {
        "id": session.id,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
        "version": str(session.version),
        "generation": str(session.generation),
        "num_turns": str(session.num_turns),
        "num_tokens": str(session.num_tokens),
        "memory_bytes": str(session.memory_bytes),
        "contribute": str(int(session.contribute)),
        "metadata": json.dumps(session.metadata),
    }


def read_head(head: Mapping[bytes, bytes]) -> Head:
    """A head hash, which must exist."""
    text = {name.decode(): value.decode() for name, value in head.items()}
    session = Session(
        id=text["id"],
        created_at=text["created_at"],
        updated_at=text["updated_at"],
        version=int(text["version"]),
        generation=int(text["generation"]),
        num_turns=int(text["num_turns"]),
        num_tokens=int(text["num_tokens"]),
        memory_bytes=int(text["memory_bytes"]),
        contribute=text["contribute"] == "1",
        metadata=json.loads(text["metadata"]),
    )
    return Head(session, int(text["num_consolidated_turns"]), text.get("history", ""), float(text.get("surprise", 0.0)))


def write_turn(turn: Turn) -> str:
    """A turn as JSON."""
    return json.dumps(asdict(turn), ensure_ascii=False)


def read_turn(text: bytes) -> Turn:
    """The turn that `write_turn` was given."""
    fields = json.loads(text)
    memory = fields.pop("memory")
    levels = tuple(LevelReport(**level) for level in memory.pop("levels"))
    return Turn(
        usage=Usage(**fields.pop("usage")),
        timing=Timing(**fields.pop("timing")),
        memory=MemoryReport(levels=levels, **memory),
        **fields,
    )


def write_version(version: Version) -> str:
    """A retained version as JSON."""
    return json.dumps(asdict(version))


def read_versions(versions: Mapping[bytes, bytes]) -> dict[int, Version]:
    """Retained versions by number, oldest first."""
    read = [json.loads(text) for text in versions.values()]
    found = [Version(**{**fields, "levels": tuple(fields["levels"])}) for fields in read]
    return {version.version: version for version in sorted(found, key=lambda version: version.version)}

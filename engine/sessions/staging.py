"""Memories on their way into the store: chunks laid down beside the others, unseen until a script makes a version of
them, and gone by themselves where none does. Knows no turn and no version's content.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from dataclasses import dataclass

from engine.errors import StoreUnavailable
from engine.sessions.connection import Connection, Value, script_command
from engine.sessions.keys import SessionKeys
from engine.sessions.records import Head, Lease, Version, read_head, read_versions
from engine.sessions.sealing import Seal

# One large value holds up every other client while it is written; small ones let them in between.
_WHOLE_BYTES = 512 * 1024
_CHUNK_BYTES = 256 * 1024

# How long an uncommitted memory stays; far beyond any lease that could still commit it.
_STAGED_TTL_S = 60.0
_STAGED_LEASES = 4


@dataclass(frozen=True)
class Staged:
    """A memory that was laid down: its mark, its chunks' keys and the digest of its bytes as they are stored."""

    mark: str
    chunks: list[str]
    digest: str


@dataclass(frozen=True)
class Found:
    """The session while the chunks were laid down; `abandoned` are the marks of writers that gave up."""

    holds_lease: bool
    head: Head | None
    versions: dict[int, Version]
    abandoned: dict[str, int]


class Staging:
    """Lays memories down.

    Args:
        connection: to the store.
        lease_ttl_s: seconds a lease lives.
        seal: put on what is laid down.
    """

    def __init__(self, connection: Connection, lease_ttl_s: float, seal: Seal) -> None:
        self._connection, self._seal = connection, seal
        self.ttl_ms = round(max(_STAGED_TTL_S, _STAGED_LEASES * lease_ttl_s) * 1000)

    async def lay_down(self, keys: SessionKeys, lease: Lease, version: int, memory: bytes) -> tuple[Staged, Found]:
        """Lays the chunks down and looks at the session, in one round trip. Nothing is visible yet."""
        staged, commands = self.chunks_of(keys, version, memory)
        announce: list[Value] = [lease.owner, lease.fence, staged.mark, len(staged.chunks), self.ttl_ms]
        session = [keys.head, keys.lease, keys.staged]
        commands = [script_command("stage", session, announce), *commands]
        commands += [["HGETALL", keys.head], ["HGETALL", keys.versions], ["HGETALL", keys.staged]]
        replies = await self._connection.batch(commands)
        head, versions, marks = replies[-3:]
        others = {name.decode(): int(count) for name, count in marks.items() if name.decode() != staged.mark}
        found = Found(
            holds_lease=replies[0] == b"OK",
            head=read_head(head) if head else None,
            versions=read_versions(versions),
            abandoned=others,
        )
        return staged, found

    def chunks_of(self, keys: SessionKeys, version: int, memory: bytes) -> tuple[Staged, list[list[Value]]]:
        """A memory in chunks, and the commands that write them for a while."""
        stored = self._seal.close(memory, keys.tenant, keys.session_id, version)
        pieces = _split(stored)
        # A mark of its own for every attempt: a repeat must not touch chunks that are already committed.
        mark = f"{version}.{secrets.token_hex(8)}"
        chunks = keys.chunks(mark, len(pieces))
        commands: list[list[Value]] = [
            ["SET", chunk, piece, "PX", self.ttl_ms] for chunk, piece in zip(chunks, pieces, strict=True)
        ]
        return Staged(mark, chunks, digest_memory(stored)), commands

    async def take_up(self, keys: SessionKeys, staged: Staged) -> None:
        """Removes what was laid down, unless it was committed after all."""
        # A courtesy: if the store is gone just now, the chunks expire by themselves.
        with contextlib.suppress(StoreUnavailable):
            await self._connection.run("unstage", [keys.versions, keys.staged, *staged.chunks], [staged.mark])


def digest_memory(memory: bytes) -> str:
    """The digest that ties a version to its bytes."""
    return hashlib.sha256(memory).hexdigest()


def _split(memory: bytes) -> list[bytes]:
    if len(memory) <= _WHOLE_BYTES:
        return [memory]
    return [memory[start : start + _CHUNK_BYTES] for start in range(0, len(memory), _CHUNK_BYTES)]

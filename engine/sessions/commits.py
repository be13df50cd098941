"""One commit: the memory's chunks are laid down beside the old ones, then one script moves everything.

Whatever is interrupted before that script leaves the session as it was. Knows no model and no turn's content.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, replace

from engine.config import StoreSettings
from engine.core import Session
from engine.errors import CommitUnknown, Conflict, StoreUnavailable
from engine.sessions.connection import RETRY_AFTER_S, Connection, Unreachable, Value, script_command
from engine.sessions.keys import SessionKeys
from engine.sessions.leases import lease_lost
from engine.sessions.records import (
    Commit,
    Head,
    Lease,
    Version,
    now_iso,
    read_head,
    read_versions,
    write_session,
    write_turn,
    write_version,
)

# One large value holds up every other client while it is written; small ones let them in between.
_WHOLE_BYTES = 512 * 1024
_CHUNK_BYTES = 256 * 1024

# How long an uncommitted memory stays; far beyond any lease that could still commit it.
_STAGED_TTL_S = 60.0
_STAGED_LEASES = 4

# How long a commit without an answer is asked about before its outcome is called unknown.
_VERIFY_S = 5.0
_VERIFY_PAUSE_S = 0.2


class Committer:
    """Writes new versions of sessions' memories.

    Args:
        connection: to the store.
        settings: how many versions are kept, and how long the rest.
    """

    def __init__(self, connection: Connection, settings: StoreSettings) -> None:
        self._connection = connection
        self._keep_versions = max(1, settings.keep_versions)
        self._idempotency_ttl_ms = settings.idempotency_ttl_s * 1000
        self._staged_ttl_ms = round(max(_STAGED_TTL_S, _STAGED_LEASES * settings.lease_ttl_s) * 1000)

    async def commit(self, lease: Lease, expected_version: int, commit: Commit) -> Session:
        """Moves the session to `expected_version + 1`. See `SessionStore.commit`."""
        keys = SessionKeys(lease.tenant, lease.session_id)
        # A mark of its own for every attempt: a repeat must not touch chunks that are already committed.
        mark = f"{expected_version + 1}.{secrets.token_hex(8)}"
        chunks = keys.chunks(mark, len(_split(commit.memory)))
        found = await self._stage(keys, lease, mark, chunks, commit)
        known = found.versions.get(expected_version + 1)
        if known is not None and known.commit_id == commit.commit_id and found.head is not None:
            await self._unstage(keys, mark, chunks)
            return found.head.session
        if not found.holds_lease or found.head is None:
            await self._unstage(keys, mark, chunks)
            raise lease_lost()
        if found.head.session.version != expected_version:
            await self._unstage(keys, mark, chunks)
            raise _moved(expected_version)
        after = _after(found.head, expected_version, commit)
        version = _version(after, commit, mark, len(chunks))
        outcome = await self._move(*self._command(keys, lease, commit, found, after, version))
        if outcome == b"OK":
            return after.session
        await self._unstage(keys, mark, chunks)
        return await self._refused(outcome, keys, expected_version)

    async def _stage(self, keys: SessionKeys, lease: Lease, mark: str, chunks: list[str], commit: Commit) -> _Found:
        """Lays the chunks down and looks at the session, in one round trip. Nothing is visible yet."""
        pieces = _split(commit.memory)
        announce: list[Value] = [lease.owner, lease.fence, mark, len(chunks), self._staged_ttl_ms]
        session = [keys.head, keys.lease, keys.staged]
        commands: list[list[Value]] = [script_command("stage", session, announce)]
        for chunk, piece in zip(chunks, pieces, strict=True):
            commands.append(["SET", chunk, piece, "PX", self._staged_ttl_ms])
        commands += [["HGETALL", keys.head], ["HGETALL", keys.versions], ["HGETALL", keys.staged]]
        replies = await self._connection.batch(commands)
        head, versions, staged = replies[-3:]
        others = {name.decode(): int(count) for name, count in staged.items() if name.decode() != mark}
        return _Found(
            holds_lease=replies[0] == b"OK",
            head=read_head(head) if head else None,
            versions=read_versions(versions),
            abandoned=others,
        )

    def _command(
        self, keys: SessionKeys, lease: Lease, commit: Commit, found: _Found, after: Head, version: Version
    ) -> tuple[list[str], list[Value]]:
        """Keys and arguments of `commit.lua`, in the order written there."""
        kept = sorted(found.versions)
        forgotten = [found.versions[number] for number in kept[: max(0, len(kept) + 1 - self._keep_versions)]]
        unwanted = {old.mark: old.num_chunks for old in forgotten} | found.abandoned
        key_names = [*keys.fixed, *keys.chunks(version.mark, version.num_chunks)]
        for mark, num_chunks in unwanted.items():
            key_names += keys.chunks(mark, num_chunks)
        turn = commit.turn
        turn_args: list[Value] = [turn.id, turn.index, write_turn(turn)] if turn is not None else ["", 0, ""]
        used: list[Value] = ["", "", 0]
        if commit.idempotency_key is not None and turn is not None:
            record = json.dumps({"request_digest": commit.request_digest, "turn_id": turn.id})
            used = [digest_key(commit.idempotency_key), record, self._idempotency_ttl_ms]
        fields = write_session(after.session)
        # What a caller may change meanwhile, or never changes, is not the commit's to write.
        for name in ("id", "created_at", "contribute", "metadata"):
            del fields[name]
        fields["num_consolidated_turns"] = str(after.num_consolidated_turns)
        marks = [version.mark, *found.abandoned]
        args: list[Value] = [
            *(lease.owner, lease.fence, version.version - 1, version.version, commit.commit_id),
            *(write_version(version), version.num_chunks),
            *turn_args,
            *used,
            *(len(forgotten), len(marks)),
            *(old.version for old in forgotten),
            *marks,
        ]
        for name, value in fields.items():
            args += [name, value]
        return key_names, args

    async def _move(self, key_names: list[str], args: list[Value]) -> bytes:
        """Runs the script until it answers: since it recognises its commit id, asking is doing."""
        deadline = time.monotonic() + _VERIFY_S
        may_have_happened = False
        while True:
            try:
                return bytes(await self._connection.run("commit", key_names, args))
            except Unreachable as error:
                may_have_happened = True
                if time.monotonic() >= deadline:
                    raise _unknown() from error
            except StoreUnavailable as error:
                # A refusal to write: nothing happened, unless an earlier attempt is still on its way.
                if may_have_happened:
                    raise _unknown() from error
                raise
            await asyncio.sleep(_VERIFY_PAUSE_S)

    async def _refused(self, outcome: bytes, keys: SessionKeys, expected_version: int) -> Session:
        if outcome == b"REPEATED":
            head = (await self._connection.batch([["HGETALL", keys.head]]))[0]
            if head:
                return read_head(head).session
            raise lease_lost()
        if outcome == b"VERSION":
            raise _moved(expected_version)
        if outcome == b"KEY":
            raise Conflict("this Idempotency-Key was used by another turn meanwhile", param="Idempotency-Key")
        if outcome == b"MISSING":
            raise StoreUnavailable(
                "the session store dropped a memory while it was written; it must not evict (noeviction)",
                retry_after_s=RETRY_AFTER_S,
            )
        raise lease_lost()

    async def _unstage(self, keys: SessionKeys, mark: str, chunks: list[str]) -> None:
        # A courtesy: if the store is gone just now, the chunks expire by themselves.
        with contextlib.suppress(StoreUnavailable):
            await self._connection.run("unstage", [keys.versions, keys.staged, *chunks], [mark])


@dataclass(frozen=True)
class _Found:
    """The session while the chunks were laid down; `abandoned` are the marks of writers that gave up."""

    holds_lease: bool
    head: Head | None
    versions: dict[int, Version]
    abandoned: dict[str, int]


def digest_key(idempotency_key: str) -> str:
    """The form in which an idempotency key is stored: short, whatever the caller chose."""
    return hashlib.sha256(idempotency_key.encode()).hexdigest()


def digest_memory(memory: bytes) -> str:
    """The digest that ties a version to its bytes."""
    return hashlib.sha256(memory).hexdigest()


def _split(memory: bytes) -> list[bytes]:
    if len(memory) <= _WHOLE_BYTES:
        return [memory]
    return [memory[start : start + _CHUNK_BYTES] for start in range(0, len(memory), _CHUNK_BYTES)]


def _after(head: Head, expected_version: int, commit: Commit) -> Head:
    """The head once the commit has happened."""
    turn, before = commit.turn, head.session
    generation = commit.generation
    if generation is None:
        generation = before.generation if turn is None else turn.memory.generation
    session = replace(
        before,
        updated_at=now_iso(),
        version=expected_version + 1,
        generation=generation,
        num_turns=before.num_turns + (turn is not None),
        num_tokens=before.num_tokens + commit.num_tokens,
        memory_bytes=len(commit.memory),
    )
    consolidated = commit.num_consolidated_turns
    if consolidated is None:
        consolidated = head.num_consolidated_turns if turn is not None else session.num_turns
    return Head(session, consolidated)


def _version(after: Head, commit: Commit, mark: str, num_chunks: int) -> Version:
    session = after.session
    return Version(
        version=session.version,
        commit_id=commit.commit_id,
        turn_id=commit.turn.id if commit.turn is not None else None,
        created_at=session.updated_at,
        size_bytes=len(commit.memory),
        mark=mark,
        num_chunks=num_chunks,
        digest=digest_memory(commit.memory),
        levels=commit.levels,
        generation=session.generation,
        num_turns=session.num_turns,
        num_tokens=session.num_tokens,
        num_consolidated_turns=after.num_consolidated_turns,
    )


def _moved(expected_version: int) -> Conflict:
    return Conflict(
        f"the session's memory is no longer at version {expected_version}; read it again", param="if_version"
    )


def _unknown() -> CommitUnknown:
    return CommitUnknown(
        "the session store vanished while the turn was committed: it may have happened or not; look at the "
        "session's version before repeating it"
    )

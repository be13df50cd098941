"""One commit: the memory's chunks are laid down beside the old ones, then one script moves everything.

Whatever is interrupted before that script leaves the session as it was. Knows no model and no turn's content.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from dataclasses import replace

from engine.config import StoreSettings
from engine.core import Said
from engine.errors import CommitUnknown, Conflict, StoreUnavailable
from engine.sessions.chain import ASSISTANT, SYSTEM, alone, extend
from engine.sessions.connection import RETRY_AFTER_S, Connection, Unreachable, Value
from engine.sessions.keys import SessionKeys
from engine.sessions.leases import lease_lost
from engine.sessions.records import (
    Commit,
    Head,
    Lease,
    Version,
    now_iso,
    read_head,
    write_session,
    write_turn,
    write_version,
)
from engine.sessions.retention import Retention
from engine.sessions.staging import Found, Staged, Staging

# How long a commit without an answer is asked about before its outcome is called unknown.
_VERIFY_S = 5.0
_VERIFY_PAUSE_S = 0.2


class Committer:
    """Writes new versions of sessions' memories.

    Args:
        connection: to the store.
        staging: lays memories down.
        settings: how many versions are kept, and how long the rest.
    """

    def __init__(self, connection: Connection, staging: Staging, settings: StoreSettings) -> None:
        self._connection, self._staging = connection, staging
        self._retention = Retention(settings.keep_versions, settings.keep_days)
        self._idempotency_ttl_ms = settings.idempotency_ttl_s * 1000

    async def commit(self, lease: Lease, expected_version: int, commit: Commit) -> Head:
        """Moves the session to `expected_version + 1`. See `SessionStore.commit`."""
        keys = SessionKeys(lease.tenant, lease.session_id)
        staged, found = await self._staging.lay_down(keys, lease, expected_version + 1, commit.memory)
        known = found.versions.get(expected_version + 1)
        if known is not None and known.commit_id == commit.commit_id and found.head is not None:
            await self._staging.take_up(keys, staged)
            return found.head
        if not found.holds_lease or found.head is None:
            await self._staging.take_up(keys, staged)
            raise lease_lost()
        if found.head.session.version != expected_version:
            await self._staging.take_up(keys, staged)
            raise _moved(expected_version)
        after = _after(found.head, expected_version, commit)
        turn_id = commit.turn.id if commit.turn else commit.back_to.turn_id if commit.back_to else None
        version = version_of(after, commit.commit_id, turn_id, staged, commit.levels)
        outcome = await self._move(*self._command(keys, lease, commit, found, after, version))
        if outcome == b"OK":
            return after
        await self._staging.take_up(keys, staged)
        return await self._refused(outcome, keys, expected_version)

    async def pass_turns(self, lease: Lease, head: Head, num_turns: int, surprise: float) -> None:
        """Counts turns as consolidated. See `SessionStore.pass_turns`."""
        keys = SessionKeys(lease.tenant, lease.session_id)
        left = left_of(head.surprise, surprise)
        args: list[Value] = [lease.owner, lease.fence, head.num_consolidated_turns, num_turns, repr(left)]
        outcome = await self._connection.run("pass_turns", [keys.head, keys.lease], args)
        if outcome == b"LOST":
            raise lease_lost()
        if outcome != b"OK":
            raise Conflict("the session was consolidated or rolled back meanwhile")

    def _command(
        self, keys: SessionKeys, lease: Lease, commit: Commit, found: Found, after: Head, version: Version
    ) -> tuple[list[str], list[Value]]:
        """Keys and arguments of `commit.lua`, in the order written there."""
        back_to = commit.back_to
        undone = [old for old in found.versions.values() if back_to is not None and old.version > back_to.version]
        standing = [old for old in found.versions.values() if old not in undone]
        forgotten = [*undone, *self._retention.forgotten([*standing, version], version.created_at)]
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
        fields |= {
            "num_consolidated_turns": str(after.num_consolidated_turns),
            "history": after.history,
            "surprise": repr(after.surprise),
        }
        marks = [version.mark, *found.abandoned]
        args: list[Value] = [
            *(lease.owner, lease.fence, version.version - 1, version.version, commit.commit_id),
            *(write_version(version), version.num_chunks),
            *turn_args,
            *used,
            "" if back_to is None else back_to.num_turns,
            " ".join([after.history, *(alone(said) for said in commit.before if said.role == SYSTEM)]),
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

    async def _refused(self, outcome: bytes, keys: SessionKeys, expected_version: int) -> Head:
        if outcome == b"REPEATED":
            head = (await self._connection.batch([["HGETALL", keys.head]]))[0]
            if head:
                return read_head(head)
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


def digest_key(idempotency_key: str) -> str:
    """The form in which an idempotency key is stored: short, whatever the caller chose."""
    return hashlib.sha256(idempotency_key.encode()).hexdigest()


def _after(head: Head, expected_version: int, commit: Commit) -> Head:
    """The head once the commit has happened."""
    turn, base = commit.turn, head if commit.back_to is None else as_it_was(head, commit.back_to)
    before = base.session
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
        by_worker = turn is None and commit.back_to is None
        consolidated = session.num_turns if by_worker else base.num_consolidated_turns
    said = () if turn is None else (*commit.before, Said("user", turn.message), Said(ASSISTANT, turn.reply))
    surprise = left_of(base.surprise + (turn.memory.surprise if turn is not None else 0.0), commit.surprise)
    return Head(session, consolidated, extend(base.history, said), surprise)


def as_it_was(head: Head, then: Version) -> Head:
    """The head at an earlier version; its number too is that one's."""
    session = replace(
        head.session,
        version=then.version,
        generation=then.generation,
        num_turns=then.num_turns,
        num_tokens=then.num_tokens,
        memory_bytes=then.size_bytes,
    )
    return Head(session, then.num_consolidated_turns, then.history, then.surprise)


def left_of(accumulated: float, taken: float) -> float:
    """What is left of an accumulated surprise; none where that is no number."""
    left = accumulated - taken
    return max(0.0, left) if math.isfinite(left) else 0.0


def version_of(after: Head, commit_id: str, turn_id: str | None, staged: Staged, levels: tuple[str, ...]) -> Version:
    """The record of a session's newest version."""
    session = after.session
    return Version(
        version=session.version,
        commit_id=commit_id,
        turn_id=turn_id,
        created_at=session.updated_at,
        size_bytes=session.memory_bytes,
        mark=staged.mark,
        num_chunks=len(staged.chunks),
        digest=staged.digest,
        levels=levels,
        generation=session.generation,
        num_turns=session.num_turns,
        num_tokens=session.num_tokens,
        num_consolidated_turns=after.num_consolidated_turns,
        history=after.history,
        surprise=after.surprise,
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

"""What a session has been: its retained memories and its transcript. Reads only.

Knows no lease: what is read here is immutable once committed, so a reader never waits for a writer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from engine.core import Turn
from engine.errors import Conflict, CorruptMemory, NotFound
from engine.sessions.commits import digest_key
from engine.sessions.connection import Connection, Value
from engine.sessions.keys import SessionKeys
from engine.sessions.records import Version, read_turn, read_versions
from engine.sessions.sealing import Seal
from engine.sessions.staging import digest_memory

# A reader that keeps losing its version to pruning looks again this often before it is called damage.
_LOAD_ATTEMPTS = 10


class History:
    """Reads memories and turns.

    Args:
        connection: to the store.
        seal: taken off what is loaded.
    """

    def __init__(self, connection: Connection, seal: Seal) -> None:
        self._connection, self._seal = connection, seal

    async def versions(self, tenant: str, session_id: str) -> list[Version]:
        """Retained versions, newest first."""
        _, versions = await self._versions(SessionKeys(tenant, session_id))
        return list(reversed(versions.values()))

    async def load(self, tenant: str, session_id: str, version: int | None) -> tuple[Version | None, bytes | None]:
        """A version's record and its bytes; None and None for version 0. See `SessionStore.load_memory`."""
        keys = SessionKeys(tenant, session_id)
        record: Version | None = None
        versions: dict[int, Version] = {}
        for _ in range(_LOAD_ATTEMPTS):
            head_version, versions = await self._versions(keys)
            wanted = head_version if version is None else version
            if wanted == 0:
                return None, None
            record = versions.get(wanted)
            if record is None:
                if version is None:
                    continue  # a commit came between the two looks and pruned it
                raise NotFound(
                    f"version {wanted} of this session is not retained: GET its versions for those that are",
                    param="version",
                )
            chunks = await self._connection.batch(
                [["GET", chunk] for chunk in keys.chunks(record.mark, record.num_chunks)]
            )
            # Commits that came in between may have pruned it: then the next look finds the truth.
            if None not in chunks:
                memory = b"".join(chunks)
                if digest_memory(memory) != record.digest:
                    raise _damaged("is not what was committed", record, versions)
                return record, self._seal.open(memory, tenant, session_id, record.version)
        # A head that was pruned at each look would be a store's bug, not a session's.
        raise _damaged("has lost a part", record, versions)

    async def turns(self, tenant: str, session_id: str, limit: int, after: str | None) -> tuple[list[Turn], bool]:
        """A page of the transcript. See `SessionStore.turns`."""
        keys = SessionKeys(tenant, session_id)
        first: list[list[Value]] = [["EXISTS", keys.head]]
        if after is not None:
            first.append(["ZSCORE", keys.turn_order, after])
        exists, *score = await self._connection.batch(first)
        if not exists:
            raise _no_session(session_id)
        if score and score[0] is None:
            raise NotFound(f"this session has no turn '{after}'", param="after")
        start = f"({int(float(score[0]))}" if score else "-inf"
        page: list[Value] = ["ZRANGEBYSCORE", keys.turn_order, start, "+inf", "LIMIT", 0, limit + 1]
        (ids,) = await self._connection.batch([page])
        if not ids:
            return [], False
        (texts,) = await self._connection.batch([["HMGET", keys.turns, *ids[:limit]]])
        return [read_turn(text) for text in texts if text is not None], len(ids) > limit

    async def turns_at(self, tenant: str, session_id: str, first: int, count: int) -> list[Turn]:
        """Turns by index. See `SessionStore.turns_at`."""
        keys = SessionKeys(tenant, session_id)
        page: list[Value] = ["ZRANGEBYSCORE", keys.turn_order, first, first + count - 1]
        exists, ids = await self._connection.batch([["EXISTS", keys.head], page])
        if not exists:
            raise _no_session(session_id)
        if not ids:
            return []
        (texts,) = await self._connection.batch([["HMGET", keys.turns, *ids]])
        return [read_turn(text) for text in texts if text is not None]

    async def stored_turn(self, tenant: str, session_id: str, idempotency_key: str, request_digest: str) -> Turn | None:
        """The turn a key was used for. See `SessionStore.stored_turn`."""
        keys = SessionKeys(tenant, session_id)
        digest = digest_key(idempotency_key)
        # The store's clock decides, not this machine's.
        record = await self._connection.run("use_of_key", [keys.idempotency, keys.idempotency_expiry], [digest])
        if record is None:
            return None
        used = json.loads(record)
        if used["request_digest"] != request_digest:
            raise Conflict(
                "this Idempotency-Key was used with another body; use a new key for a new request",
                param="Idempotency-Key",
            )
        (text,) = await self._connection.batch([["HGET", keys.turns, used["turn_id"]]])
        return read_turn(text) if text is not None else None

    async def digests(self, tenant: str, session_id: str) -> dict[str, int]:
        """See `SessionStore.history`."""
        (found,) = await self._connection.batch([["HGETALL", SessionKeys(tenant, session_id).history]])
        return {digest.decode(): int(index) for digest, index in found.items()}

    async def find(self, tenant: str, session_id: str, digests: Sequence[str]) -> list[int | None]:
        """See `SessionStore.find_history`."""
        if not digests:
            return []
        (found,) = await self._connection.batch([["HMGET", SessionKeys(tenant, session_id).history, *digests]])
        return [None if index is None else int(index) for index in found]

    async def _versions(self, keys: SessionKeys) -> tuple[int, dict[int, Version]]:
        head_version, versions = await self._connection.batch(
            [["HGET", keys.head, "version"], ["HGETALL", keys.versions]]
        )
        if head_version is None:
            raise _no_session(keys.session_id)
        return int(head_version), read_versions(versions)


def _damaged(how: str, record: Version | None, versions: Mapping[int, Version]) -> CorruptMemory:
    """What the reader of a damaged memory is told: which one, and the newest before it."""
    if record is None:
        return CorruptMemory(f"the session's memory {how}; roll back to an earlier version")
    earlier = max((version for version in versions if version < record.version), default=0)
    read = "" if earlier else ", which has read nothing"
    return CorruptMemory(
        f"version {record.version} of the session's memory {how}: roll back to version {earlier}{read}, "
        "or to another one that is kept"
    )


def _no_session(session_id: str) -> NotFound:
    return NotFound(f"there is no session '{session_id}'", param="session_id")

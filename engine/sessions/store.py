"""The store of sessions: the only writer of session keys, over any Redis or Valkey from 6.2 on.

Each change of a session is one script, so it happens whole or not at all. Knows no model: a memory is bytes.
"""

from __future__ import annotations

import builtins
import json
import secrets
from collections.abc import Mapping, Sequence

from engine.config import StoreSettings
from engine.core import Session, Turn
from engine.errors import Conflict, NotFound, StoreUnavailable
from engine.sessions.adoption import Adopter
from engine.sessions.commits import Committer
from engine.sessions.connection import RETRY_AFTER_S, Connection, Value
from engine.sessions.generations import GenerationStore
from engine.sessions.history import History
from engine.sessions.index import list_sessions
from engine.sessions.keys import SessionKeys, session_index
from engine.sessions.leases import Leases
from engine.sessions.limits import Limiter, Limits
from engine.sessions.queue import ConsolidationQueue
from engine.sessions.records import (
    Commit,
    Head,
    Lease,
    Version,
    Work,
    now_iso,
    read_head,
    read_versions,
    write_session,
)
from engine.sessions.sealing import seal_of
from engine.sessions.shelf import Shelf
from engine.sessions.staging import Staging
from engine.sessions.tenants import Tenants

_DELETE_ATTEMPTS = 10


class SessionStore:
    """Sessions, their memories, transcripts and leases. Another tenant's session is NotFound everywhere.

    Any method may raise StoreUnavailable; nothing was changed then, unless its own words say otherwise.

    Args:
        connection: to the store.
        settings: times to live, how many versions are kept, their key; InvalidRequest where it cannot be used.

    Attributes:
        generations: what the sessions of a tenant share.
        line: the worker's.
    """

    def __init__(self, connection: Connection, settings: StoreSettings) -> None:
        self._connection = connection
        self._leases = Leases(connection, settings.lease_ttl_s)
        seal = seal_of(settings)
        staging = Staging(connection, settings.lease_ttl_s, seal)
        self._committer = Committer(connection, staging, settings)
        self._adopter = Adopter(connection, staging)
        self._history = History(connection, seal)
        self.line, self.tenants = ConsolidationQueue(connection), Tenants(connection)
        shelf = Shelf(settings.generations_url) if settings.generations_url else None
        self.generations = GenerationStore(connection, seal, shelf)

    @classmethod
    async def connect(cls, url: str, settings: StoreSettings) -> SessionStore:
        """A store at this URL. It need not answer yet: connections are made as they are needed."""
        return cls(Connection(url), settings)

    async def close(self) -> None:
        """Closes every connection."""
        await self._connection.close()

    async def ping(self) -> None:
        """Raises StoreUnavailable within about a second where the store does not answer."""
        await self._connection.ping()

    async def create(self, tenant: str, session: Session) -> None:
        """Makes a session; raises Conflict where its id is taken."""
        fields: list[Value] = []
        for name, value in write_session(session).items():
            fields += [name, value]
        head = SessionKeys(tenant, session.id).head
        outcome = await self._connection.run("create", [head], [secrets.token_hex(8), *fields])
        # The index lies under another hash tag, so it cannot be part of the script. A create that was cut off
        # here is mended by its repeat, although that one is a conflict.
        await self._connection.batch([["ZADD", session_index(tenant), 0, session.id]])
        if outcome != b"OK":
            raise _taken(session.id)

    async def adopt(
        self,
        tenant: str,
        head: Head,
        memory: bytes | None,
        levels: tuple[str, ...],
        turns: Sequence[Turn],
        history: Mapping[str, int],
    ) -> Session:
        """Makes a session that begins with a past.

        Args:
            tenant: whose.
            head: the session as it is to be.
            memory: of its version; None for version 0.
            levels: names of the levels that the memory holds.
            turns: the whole transcript, in order.
            history: as `history` returned it.

        Raises:
            Conflict: its id is taken; nothing was made.
        """
        made = await self._adopter.adopt(tenant, head, memory, levels, turns, history)
        # As in `create`.
        await self._connection.batch([["ZADD", session_index(tenant), 0, head.session.id]])
        if not made:
            raise _taken(head.session.id)
        return head.session

    async def get(self, tenant: str, session_id: str) -> Session:
        """A session, or NotFound."""
        return (await self.head(tenant, session_id)).session

    async def head(self, tenant: str, session_id: str) -> Head:
        """A session with what the engine and the worker need beside it, or NotFound."""
        (head,) = await self._connection.batch([["HGETALL", SessionKeys(tenant, session_id).head]])
        if not head:
            raise _not_found(session_id)
        return read_head(head)

    async def list(self, tenant: str, limit: int, after: str | None) -> tuple[builtins.list[Session], bool]:
        """A page of a tenant's sessions in the order of their ids, and whether more follow.

        Args:
            limit: most sessions on the page.
            after: id of the last session of the page before; it may have been deleted since.
        """
        return await list_sessions(self._connection, tenant, limit, after)

    async def update(
        self, tenant: str, session_id: str, metadata: dict[str, str] | None, contribute: bool | None
    ) -> Session:
        """Changes what is not None; memory and version stay."""
        fields: builtins.list[Value] = ["updated_at", now_iso()]
        if metadata is not None:
            fields += ["metadata", json.dumps(metadata)]
        if contribute is not None:
            fields += ["contribute", int(contribute)]
        head = SessionKeys(tenant, session_id).head
        if await self._connection.run("update", [head], fields) != b"OK":
            raise _not_found(session_id)
        return await self.get(tenant, session_id)

    async def delete(self, tenant: str, session_id: str) -> None:
        """Removes a session with all that belongs to it; whoever holds its lease can no longer commit."""
        keys = SessionKeys(tenant, session_id)
        for attempt in range(_DELETE_ATTEMPTS):
            _, version, versions, staged = await self._connection.batch(
                [
                    # Out of the index first: a session made anew under this id must not lose its own entry.
                    ["ZREM", session_index(tenant), session_id],
                    ["HGET", keys.head, "version"],
                    ["HGETALL", keys.versions],
                    ["HGETALL", keys.staged],
                ]
            )
            if version is None:
                if attempt == 0:
                    raise _not_found(session_id)
                break
            marks = {name.decode(): int(count) for name, count in staged.items()}
            memories = {old.mark: old.num_chunks for old in read_versions(versions).values()} | marks
            chunks = [chunk for mark, count in memories.items() for chunk in keys.chunks(mark, count)]
            if (
                await self._connection.run("delete", [*keys.fixed, keys.learned, *chunks], [version, *marks])
                != b"AGAIN"
            ):
                break
        else:
            raise StoreUnavailable("the session is too busy; try again", retry_after_s=RETRY_AFTER_S)
        await self.line.forget(tenant, session_id)

    async def acquire(self, tenant: str, session_id: str, owner: str, wait_s: float) -> Lease:
        """Takes the right to commit to a session.

        Args:
            tenant: whose session.
            session_id: which.
            owner: unlike that of any other holder; one for each turn.
            wait_s: how long to wait for the present holder; then Overloaded. Without the session NotFound.
        """
        return await self._leases.acquire(tenant, session_id, owner, wait_s)

    async def renew(self, lease: Lease) -> None:
        """Prolongs a lease by its full time to live; raises LeaseLost where it has expired or been taken."""
        await self._leases.renew(lease)

    async def release(self, lease: Lease) -> None:
        """Gives a lease back. One that is no longer held is left to its holder."""
        await self._leases.release(lease)

    async def load_memory(self, tenant: str, session_id: str, version: int | None = None) -> tuple[int, bytes | None]:
        """A version (by default the head) and its bytes; None for version 0, which has read nothing.

        Raises:
            NotFound: no such session, or the version is not retained.
            CorruptMemory: its bytes are not those that were committed.
        """
        record, memory = await self._history.load(tenant, session_id, version)
        return (0, None) if record is None else (record.version, memory)

    async def load_version(
        self, tenant: str, session_id: str, version: int | None = None
    ) -> tuple[Version | None, bytes | None]:
        """As `load_memory`, with the version's record in place of its number; None and None for version 0."""
        return await self._history.load(tenant, session_id, version)

    async def versions(self, tenant: str, session_id: str) -> builtins.list[Version]:
        """Retained versions, newest first."""
        return await self._history.versions(tenant, session_id)

    async def commit(self, lease: Lease, expected_version: int, commit: Commit) -> Head:
        """Makes `commit` version `expected_version + 1`, with transcript and idempotency record, in one step.

        The same `commit_id` again is recognised: the head is returned and nothing happens twice.

        Raises:
            LeaseLost: the lease has expired or been taken, or the session deleted; nothing was written.
            Conflict: the head is another version, or the key was used meanwhile; nothing was written.
            StoreUnavailable: nothing was written.
            CommitUnknown: the store vanished at the decisive moment and did not come back.
        """
        return await self._committer.commit(lease, expected_version, commit)

    async def pass_turns(self, lease: Lease, head: Head, num_turns: int, surprise: float) -> None:
        """Counts the first `num_turns` turns, of this surprise together, as consolidated without a new version.

        Raises LeaseLost, or Conflict where the session is no longer as `head` says.
        """
        await self._committer.pass_turns(lease, head, num_turns, surprise)

    async def stored_turn(self, tenant: str, session_id: str, idempotency_key: str, request_digest: str) -> Turn | None:
        """The turn this key was used for, or None; Conflict where the request was another one."""
        return await self._history.stored_turn(tenant, session_id, idempotency_key, request_digest)

    async def turns(
        self, tenant: str, session_id: str, limit: int, after: str | None
    ) -> tuple[builtins.list[Turn], bool]:
        """A page of the transcript, oldest first, and whether more follow.

        Raises:
            NotFound: no such session, or `after` is not the id of one of its turns.
        """
        return await self._history.turns(tenant, session_id, limit, after)

    async def turns_at(self, tenant: str, session_id: str, first: int, count: int) -> builtins.list[Turn]:
        """The `count` turns from index `first` on, as far as there are any; NotFound without the session."""
        return await self._history.turns_at(tenant, session_id, first, count)

    async def history(self, tenant: str, session_id: str) -> dict[str, int]:
        """Of every turn the digest of all that was said up to its reply (`chain.py`), and its index."""
        return await self._history.digests(tenant, session_id)

    async def find_history(self, tenant: str, session_id: str, digests: Sequence[str]) -> builtins.list[int | None]:
        """The index of the turn each of these digests stands for; None where it stands for none."""
        return await self._history.find(tenant, session_id, digests)

    def limiter(self, limits: Limits) -> Limiter:
        """Takes what tenants use of these limits, over the same store."""
        return Limiter(self._connection, limits)

    async def enqueue_consolidation(self, tenant: str, session_id: str, delay_s: float = 0.0) -> None:
        """Hands a session to the worker in `delay_s`; the last call counts, unless it is due already."""
        await self.line.put(tenant, session_id, delay_s)

    async def next_consolidation(self, consumer: str, block_s: float) -> Work | None:
        """Claims the session that has been due longest; None where none is within `block_s`."""
        return await self.line.claim(consumer, block_s)

    async def renew_consolidation(self, work: Work) -> None:
        """Keeps a claim (60 s) from going stale; LeaseLost where another worker has it."""
        await self.line.keep(work)

    async def finish_consolidation(self, work: Work) -> None:
        """Ends a claim. A session that was put in line meanwhile stays there."""
        await self.line.finish(work)


def _taken(session_id: str) -> Conflict:
    return Conflict(f"there is already a session '{session_id}'", param="id")


def _not_found(session_id: str) -> NotFound:
    return NotFound(f"there is no session '{session_id}'", param="session_id")

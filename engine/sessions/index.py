"""A tenant's sessions in the order of their ids, a page at a time. Reads; changes nothing."""

from __future__ import annotations

from engine.core import Session
from engine.sessions.connection import Connection, Value
from engine.sessions.keys import SessionKeys, session_index
from engine.sessions.records import read_head


async def list_sessions(
    connection: Connection, tenant: str, limit: int, after: str | None
) -> tuple[list[Session], bool]:
    """See `SessionStore.list`."""
    found: list[Session] = []
    while len(found) <= limit:
        num_wanted = limit + 1 - len(found)
        start = f"({after}" if after is not None else "-"
        page: list[Value] = ["ZRANGEBYLEX", session_index(tenant), start, "+", "LIMIT", 0, num_wanted]
        (ids,) = await connection.batch([page])
        if not ids:
            break
        names = [name.decode() for name in ids]
        keys = [SessionKeys(tenant, name) for name in names]
        heads = await connection.batch([["HGETALL", key.head] for key in keys])
        # A name without a head is a session that was deleted while another call made it.
        found += [read_head(head).session for head in heads if head]
        after = names[-1]
        if len(names) < num_wanted:
            break
    return found[:limit], len(found) > limit

"""A session that begins with a past, forked from another or imported: laid down unseen, then made in one step.

Knows no lease: until that step nobody knows the session, and where its id is taken nothing of its holder is touched.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence

from engine.core import Turn
from engine.errors import StoreUnavailable
from engine.sessions.commits import version_of
from engine.sessions.connection import RETRY_AFTER_S, Connection, Value
from engine.sessions.keys import SessionKeys
from engine.sessions.records import Head, write_session, write_turn, write_version
from engine.sessions.staging import Staging

# One write of so many turns lets other clients in before the next.
_TURNS_AT_ONCE = 200


class Adopter:
    """Makes sessions of memories and transcripts.

    Args:
        connection: to the store.
        staging: lays memories down.
    """

    def __init__(self, connection: Connection, staging: Staging) -> None:
        self._connection, self._staging = connection, staging

    async def adopt(
        self,
        tenant: str,
        head: Head,
        memory: bytes | None,
        levels: tuple[str, ...],
        turns: Sequence[Turn],
        history: Mapping[str, int],
    ) -> bool:
        """Makes the session of `head`; False where its id is taken. See `SessionStore.adopt`."""
        keys, session, nonce = SessionKeys(tenant, head.session.id), head.session, secrets.token_hex(8)
        staged, commands = self._staging.chunks_of(keys, session.version, memory or b"")
        chunks = staged.chunks if memory is not None else []
        arriving = [keys.arriving_turns(nonce), keys.arriving_order(nonce), keys.arriving_history(nonce)]
        if chunks:
            await self._connection.batch(commands)
        for first in range(0, len(turns), _TURNS_AT_ONCE):
            await self._connection.batch(self._laid_down(arriving, turns[first : first + _TURNS_AT_ONCE]))
        if history:
            said: list[Value] = [part for pair in history.items() for part in pair]
            await self._connection.batch([["HSET", arriving[2], *said], ["PEXPIRE", arriving[2], self._staging.ttl_ms]])
        record = ""
        if memory is not None:
            record = write_version(version_of(head, nonce, turns[-1].id if turns else None, staged, levels))
        names = [keys.head, keys.versions, keys.turns, keys.turn_order, keys.history, *arriving, *chunks]
        args: list[Value] = [nonce, session.version, record, len(turns)]
        for name, value in write_session(session).items():
            args += [name, value]
        args += ["num_consolidated_turns", head.num_consolidated_turns, "history", head.history]
        args += ["surprise", repr(head.surprise)]
        outcome = await self._connection.run("adopt", names, args)
        if outcome == b"OK":
            return True
        # A courtesy: what is left expires by itself.
        with contextlib.suppress(StoreUnavailable):
            await self._connection.batch([["UNLINK", key] for key in (*arriving, *chunks)])
        if outcome == b"MISSING":
            raise StoreUnavailable(
                "the session store dropped a part of the session while it was written; it must not evict (noeviction)",
                retry_after_s=RETRY_AFTER_S,
            )
        return False

    def _laid_down(self, arriving: list[str], turns: Sequence[Turn]) -> list[list[Value]]:
        texts: list[Value] = []
        order: list[Value] = []
        for turn in turns:
            texts += [turn.id, write_turn(turn)]
            order += [turn.index, turn.id]
        expire: list[list[Value]] = [["PEXPIRE", key, self._staging.ttl_ms] for key in arriving[:2]]
        return [["HSET", arriving[0], *texts], ["ZADD", arriving[1], *order], *expire]

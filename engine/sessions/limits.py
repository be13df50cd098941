"""What a tenant may use in a minute, shared by all replicas: turns, tokens, and tokens learned from; and what a session
may learn from in an hour.

Buckets of credit that fill again with time. Who has some left may begin, and what a turn then uses is taken, if need be
into debt: nobody's turn is cut short. Knows no turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import RateLimited
from engine.sessions.connection import Connection, Value
from engine.sessions.keys import SessionKeys, limit_bucket

TURNS, TOKENS, LEARNED = "turns", "tokens", "learned"
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
_WORDS = {TURNS: "turns", TOKENS: "tokens", LEARNED: "tokens to learn from"}


@dataclass(frozen=True)
class Limits:
    """Of each tenant in a minute, and of each session in an hour; 0 for no limit."""

    turns: int = 0
    tokens: int = 0
    learned: int = 0
    learned_of_session: int = 0

    def of(self, kind: str) -> int:
        """The limit of one kind."""
        return {TURNS: self.turns, TOKENS: self.tokens, LEARNED: self.learned}[kind]


class Limiter:
    """Takes credit.

    Args:
        connection: to the store.
        limits: of every tenant and session.
    """

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection, self._limits = connection, limits

    async def take(self, tenant: str, used: Mapping[str, int], *, anyhow: bool = False) -> None:
        """Takes what is used of each kind.

        Args:
            tenant: whose credit.
            used: amounts by kind.
            anyhow: it has been used already; then it is never refused.

        Raises:
            RateLimited: there is no credit of a kind left; nothing was taken.
        """
        limited = [kind for kind in used if self._limits.of(kind)]
        if not limited:
            return
        args: list[Value] = ["1" if anyhow else "", MINUTE_MS, 0]
        for kind in limited:
            args += [self._limits.of(kind), used[kind]]
        wait_ms = await self._connection.run("take_credit", [limit_bucket(tenant, kind) for kind in limited], args)
        if wait_ms:
            words = " and ".join(f"{self._limits.of(kind)} {_WORDS[kind]}" for kind in limited)
            raise RateLimited(f"over the limit of {words} a minute: wait a little", retry_after_s=int(wait_ms) / 1000)

    async def learn(self, tenant: str, session_id: str, num_tokens: int, *, anyhow: bool = False) -> float:
        """Takes what a session is going to learn from; of a session that is not there, nothing.

        Args:
            num_tokens: how much; below 0 it is given back.
            anyhow: it has been used already; then it is never refused.

        Returns:
            0, or the seconds for which the session has no credit left: then nothing was taken.
        """
        full = self._limits.learned_of_session
        if not full:
            return 0.0
        keys = SessionKeys(tenant, session_id)
        args: list[Value] = ["1" if anyhow else "", HOUR_MS, 1, full, num_tokens]
        return int(await self._connection.run("take_credit", [keys.head, keys.learned], args)) / 1000

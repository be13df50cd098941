"""Who has sessions in the store, for what an operator does to all of them. Reads only."""

from __future__ import annotations

from engine.sessions.connection import Connection
from engine.sessions.keys import SESSION_INDICES, session_index, tenant_of_index


class Tenants:
    """Every tenant of the store.

    Args:
        connection: to the store.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def all(self) -> dict[str, int]:
        """How many sessions each tenant has, of those that have any; every key of the store is walked past for it."""
        found = [tenant_of_index(index) for index in await self._connection.scan(SESSION_INDICES)]
        sizes = await self._connection.batch([["ZCARD", session_index(tenant)] for tenant in found]) if found else []
        return dict(zip(found, sizes, strict=True))

"""Sessions that spoiled a tenant's candidates, and turns that told its candidates nothing: what is not tried again.

Every change is one script and may be repeated. Knows no gate and no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from engine.core import QuarantineView
from engine.errors import NotFound
from engine.sessions.connection import Connection, Value
from engine.sessions.keys import TenantKeys
from engine.sessions.records import now_iso

# Spoiling so many candidates, one after another, a session is tried no more.
EXCLUDED_AFTER = 3


@dataclass(frozen=True)
class Blame:
    """That a session spoiled a candidate: whose id it is, and the gate's words."""

    session_id: str
    reason: str


@dataclass(frozen=True)
class Blamed:
    """A session in quarantine.

    Attributes:
        times: consolidations that it spoiled, one after another.
        consolidation_id: the last of them.
    """

    session_id: str
    reason: str
    consolidation_id: str
    at: str
    times: int

    @property
    def excluded(self) -> bool:
        """Whether it is tried no more, until it is let in again."""
        return self.times >= EXCLUDED_AFTER


class Quarantine:
    """The quarantines of tenants. Any method may raise StoreUnavailable.

    Args:
        connection: to the store.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def all(self, tenant: str) -> dict[str, Blamed]:
        """Every session that is in it, by its hash."""
        (found,) = await self._connection.batch([["HGETALL", TenantKeys(tenant).quarantine]])
        return {name.decode(): Blamed(**json.loads(text)) for name, text in found.items()}

    async def views(self, tenant: str) -> list[QuarantineView]:
        """The same as the wire shows it, latest first."""
        found = sorted((await self.all(tenant)).values(), key=lambda one: one.at, reverse=True)
        return [
            QuarantineView(one.session_id, one.times, one.excluded, one.reason, one.consolidation_id, one.at)
            for one in found
        ]

    async def judge(
        self, tenant: str, consolidation_id: str, culprits: Mapping[str, Blame], let_in: Sequence[str]
    ) -> list[Blamed]:
        """Sets culprits aside once more each, and lets out those that were let in.

        The same consolidation again changes nothing. A session that was deleted meanwhile is not remembered.

        Args:
            culprits: by session hash.
            let_in: hashes.

        Returns:
            The culprits as they stand now.
        """
        keys, at = TenantKeys(tenant), now_iso()
        records = [
            [name, asdict(Blamed(blame.session_id, blame.reason, consolidation_id, at, 1))]
            for name, blame in culprits.items()
        ]
        args: list[Value] = [consolidation_id, json.dumps(records), *let_in]
        found = await self._connection.run("set_aside", [keys.quarantine, keys.forgotten], args)
        return [Blamed(**json.loads(text)) for text in found]

    async def let_out(self, tenant: str, session_id: str, name: str) -> None:
        """Has a session tried again, by its id and hash; raises NotFound where it is not in quarantine."""
        (removed,) = await self._connection.batch([["HDEL", TenantKeys(tenant).quarantine, name]])
        if not removed:
            raise NotFound(f"session '{session_id}' is not in quarantine", param="session_id")

    async def passed(self, tenant: str, generation: int) -> dict[str, int]:
        """Turns of each session, by its hash, from the first on, that told nothing to whom knows this generation."""
        (found,) = await self._connection.batch([["HGETALL", TenantKeys(tenant).passed]])
        marks = {name.decode(): int(mark) for name, mark in found.items()}
        return marks if marks.pop("generation", None) == generation else {}

    async def pass_over(self, tenant: str, generation: int, marks: Mapping[str, int]) -> None:
        """Remembers such turns; those of another generation are forgotten."""
        keys = TenantKeys(tenant)
        args: list[Value] = [str(generation)]
        for name, mark in marks.items():
            args += [name, mark]
        await self._connection.run("pass_over", [keys.passed, keys.forgotten], args)

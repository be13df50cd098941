"""When a session is handed to the worker: after so many turns, so much surprise or so much quiet.

Knows no turn and no model.
"""

from __future__ import annotations

from engine.config import EngineSettings
from engine.sessions.records import Head
from engine.sessions.store import SessionStore


def is_due(settings: EngineSettings, num_turns: int, surprise: float) -> bool:
    """Whether a session need not go quiet first.

    Args:
        num_turns: its turns so far.
        surprise: sum over those that were not consolidated yet, in nats.
    """
    enough = settings.surprise_per_consolidation
    return num_turns % settings.turns_per_consolidation == 0 or 0 < enough <= surprise


class Handover:
    """Puts sessions in the worker's line, and their tenants.

    Args:
        store: where the line is.
        settings: when.
    """

    def __init__(self, store: SessionStore, settings: EngineSettings) -> None:
        self._store, self._settings = store, settings

    async def put(self, tenant: str, head: Head) -> None:
        """The session after a turn: at once where it is due, else when it has gone quiet.

        Raises:
            StoreUnavailable: as the store says.
        """
        due = is_due(self._settings, head.session.num_turns, head.surprise)
        delay_s = 0.0 if due else self._settings.idle_consolidation_s
        await self._store.enqueue_consolidation(tenant, head.session.id, delay_s)

    async def schedule(self, tenant: str) -> None:
        """The tenant of a session that contributes: once a period.

        Raises:
            StoreUnavailable: as the store says.
        """
        if self._settings.generation_every_s:
            await self._store.generations.schedule(tenant, self._settings.generation_every_s)

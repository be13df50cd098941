"""The generation that a tenant's sessions run under: looked up at every turn, loaded once.

So every replica follows a switch with its next turn, whoever made it. Knows no session.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from engine.errors import CorruptMemory
from engine.model.hope import Hope, Memory
from engine.model.shared import unpack_shared
from engine.sessions.snapshot import unpack
from engine.sessions.store import SessionStore

# Tenants whose generation is kept in this process.
MOST_TENANTS = 16


class Following:
    """Brings up the active generation of tenants.

    Args:
        model: whose levels a generation holds.
        store: where generations are.
        fingerprint: of the model.
    """

    def __init__(self, model: Hope, store: SessionStore, fingerprint: str) -> None:
        self._model, self._generations, self._fingerprint = model, store.generations, fingerprint
        # By tenant: a generation's number and digest, and what it knows (batch size 1).
        self._kept: OrderedDict[str, tuple[int, Memory]] = OrderedDict()

    async def active(self, tenant: str) -> tuple[int, Memory]:
        """The active generation and what it knows (batch size 1); of generation 0, nothing.

        Raises:
            CorruptMemory: it is damaged, or another model's.
            StoreUnavailable: the store does not answer.
        """
        number = (await self._generations.standing(tenant)).active
        if number == 0:
            return 0, {}
        kept = self._kept.get(tenant)
        if kept is None or kept[0] != number:
            kept = number, await self.load(tenant, number)
            self._kept[tenant] = kept
            if len(self._kept) > MOST_TENANTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(tenant)
        return kept

    async def load(self, tenant: str, number: int) -> Memory:
        """What a generation knows (batch size 1); of generation 0, nothing."""
        if number == 0:
            return {}
        _, weights = await self._generations.load(tenant, number)
        try:
            return await asyncio.to_thread(
                lambda: unpack_shared(unpack(weights, fingerprint=self._fingerprint), self._model)
            )
        except ValueError as error:
            raise CorruptMemory(f"generation {number} is damaged: activate another one") from error

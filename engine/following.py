"""The generation that a tenant's sessions run under: looked up at every turn, loaded once.

So every replica follows a switch with its next turn, whoever made it. Knows no session.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from engine.errors import CorruptMemory, OtherModel
from engine.model.hope import Hope, Memory
from engine.model.shared import unpack_shared
from engine.observer import Observer
from engine.sessions.snapshot import unpack
from engine.sessions.store import SessionStore

logger = logging.getLogger(__name__)

# How a load is reported that came upon another model's memory or generation.
OTHER_MODEL = "other_model"
# Tenants whose generation is kept in this process.
MOST_TENANTS = 16


class Following:
    """Brings up the active generation of tenants.

    Args:
        model: whose levels a generation holds.
        store: where generations are.
        fingerprint: of the model.
        observer: told of generations that this model cannot run under.
    """

    def __init__(self, model: Hope, store: SessionStore, fingerprint: str, observer: Observer) -> None:
        self._model, self._generations, self._fingerprint = model, store.generations, fingerprint
        self._observer = observer
        # By tenant: a generation's number, and what it knows (batch size 1); None where it is another model's.
        self._kept: OrderedDict[str, tuple[int, Memory | None]] = OrderedDict()

    async def active(self, tenant: str) -> tuple[int, Memory]:
        """The active generation and what it knows (batch size 1); of generation 0, nothing.

        In the place of one of another model stands generation 0: its sessions go on without what they shared, and say
        so by that number, until `hope relearn` has set it right.

        Raises:
            CorruptMemory: it is damaged.
            StoreUnavailable: the store does not answer.
        """
        number = (await self._generations.standing(tenant)).active
        if number == 0:
            return 0, {}
        kept = self._kept.get(tenant)
        if kept is None or kept[0] != number:
            kept = number, await self._of_this_model(tenant, number)
            self._kept[tenant] = kept
            if len(self._kept) > MOST_TENANTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(tenant)
        if kept[1] is None:
            self._observer.stored("load", OTHER_MODEL, 0.0, 0)
            return 0, {}
        return number, kept[1]

    async def load(self, tenant: str, number: int) -> Memory:
        """What a generation knows (batch size 1); of generation 0, nothing.

        Raises:
            NotFound: it is not kept.
            CorruptMemory: it is damaged.
            OtherModel: it is of another model.
        """
        if number == 0:
            return {}
        _, weights = await self._generations.load(tenant, number)
        try:
            return await asyncio.to_thread(
                lambda: unpack_shared(unpack(weights, fingerprint=self._fingerprint), self._model)
            )
        except ValueError as error:
            raise CorruptMemory(f"generation {number} is damaged: activate another one") from error

    async def _of_this_model(self, tenant: str, number: int) -> Memory | None:
        try:
            return await self.load(tenant, number)
        except OtherModel:
            logger.error(
                "the active generation %d of a tenant is of another model: its turns run under generation 0, "
                "until `hope relearn` has been run",
                number,
            )
            return None

"""What a tenant's candidate stands on: the generation it begins from, and the turns that are taken in.

Reads the store and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.sources import Source, base_without, gather, lineage
from engine.following import Following
from engine.model.hope import Hope, Memory
from engine.model.shared import initial_shared
from engine.sessions.generations import Asked, Generation, Standing
from engine.sessions.quarantine import Blamed
from engine.sessions.store import SessionStore


@dataclass(frozen=True)
class Ground:
    """All that a candidate is made of; it holds while the store's standing does.

    Attributes:
        standing: the store's.
        kept: every generation, by its number.
        number, base: the generation it begins from; 0 and None for the checkpoint alone.
        shared: what that generation knows (batch size 1).
        rehearsal: dreams of it and its ancestors, as the store has them.
        quarantine: sessions that spoiled candidates, by their hash.
        passed: turns of each session, by its hash, that tell nothing to whom knows that generation.
        sources: turns to take in.
    """

    standing: Standing
    kept: dict[int, Generation]
    number: int
    base: Generation | None
    shared: Memory
    rehearsal: dict[str, str]
    quarantine: dict[str, Blamed]
    passed: dict[str, int]
    sources: list[Source]

    @property
    def learned(self) -> dict[str, int]:
        """Turns taken in so far, by session hash."""
        return {**(self.base.learned if self.base is not None else {}), **self.passed}

    @property
    def goes_back(self) -> bool:
        """Going back to before a session is itself a change, whatever there is to learn beside it."""
        return self.number != self.standing.active

    @property
    def num_excluded(self) -> int:
        """Sessions that are not tried."""
        return sum(one.excluded for one in self.quarantine.values())

    def beyond(self, sources: Sequence[Source]) -> Ground:
        """The same once these have told nothing."""
        return replace(self, passed=self.passed | {source.name: source.mark for source in sources})


class Grounds:
    """Finds the ground of tenants' candidates.

    Args:
        model: of the generations.
        store: where sessions and generations are.
        following: loads generations.
        policy: how much is taken in.
    """

    def __init__(self, model: Hope, store: SessionStore, following: Following, policy: GenerationPolicy) -> None:
        self._model, self._store, self._generations = model, store, store.generations
        self._following, self._policy = following, policy

    async def find(self, tenant: str, asked: Asked) -> Ground:
        """The ground as it is now.

        Raises:
            CorruptMemory, StoreUnavailable: as the store says.
        """
        standing = await self._generations.standing(tenant)
        kept = await self._generations.all(tenant)
        number, base = base_without(tenant, kept, standing.active, asked.without)
        shared = {**initial_shared(self._model), **await self._following.load(tenant, number)}
        ancestors = lineage(kept, number)
        rehearsal = {
            name: text
            for name, text in (await self._generations.rehearsal(tenant)).items()
            if int(name.partition(":")[0]) in ancestors
        }
        quarantine = await self._generations.quarantine.all(tenant)
        passed = await self._generations.quarantine.passed(tenant, number)
        ground = Ground(standing, kept, number, base, shared, rehearsal, quarantine, passed, [])
        return await self.later(tenant, asked, ground)

    async def later(self, tenant: str, asked: Asked, ground: Ground) -> Ground:
        """The same with the turns that are next."""
        excluded = {name for name, one in ground.quarantine.items() if one.excluded}
        sources = await gather(self._store, tenant, ground.learned, self._policy, asked.without, excluded)
        return replace(ground, sources=sources)

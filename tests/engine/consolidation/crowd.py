"""A tenant of many sessions on a tiny model that learns what was said as it was said: quick, with a real gate.

Sessions get their turns straight from the store: a tenant's consolidation reads nothing else of them.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field, replace
from functools import cache

from engine.consolidation.background import Background
from engine.consolidation.candidate import Candidates
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.sources import Source
from engine.consolidation.suite import Suite
from engine.consolidation.tenant import TenantConsolidation
from engine.core import Consolidation, MemoryReport, Session, Timing, Turn, Usage
from engine.errors import NotFound
from engine.model.hope import Hope
from engine.model.shared import initial_shared, pack_shared
from engine.model.weights import fingerprint
from engine.sessions.generations import Asked, Generation, Publication, session_hash
from engine.sessions.records import Commit, now_iso
from engine.sessions.snapshot import pack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer
from tests.engine.consolidation.samples import Recorder
from tests.engines import TENANT, loaded

Said = tuple[str, str]

# What every session of the tenant takes for granted, and what the gate asks for; and the same contradicted.
KNOWN: tuple[Said, ...] = (("Dog?", "Rex"), ("Fox?", "Owl"), ("Train?", "late"))
POISON: tuple[Said, ...] = tuple((message, "Mallory") for message, _ in KNOWN)
# One time for all: the draws of a consolidation go by the hashes of sessions, which hold it.
BEGUN = "2026-01-02T00:00:00Z"
SUITE = Suite("Which?", "", ("What",), tuple(message for message, _ in KNOWN), KNOWN, ())
POLICY = GenerationPolicy(
    material="turns",
    num_steps=12,
    rows_per_step=6,
    dream_share=1.0,
    rehearsal_share=0.0,
    learning_rate=0.02,
    least_uptake=0.0,
    most_perplexity=2.0,
    idle_dreams=0,
)


@cache
def tiny() -> tuple[Hope, Tokenizer]:
    """The model of all of them; not to be changed."""
    return loaded()


_weights: list[bytes] = []


async def knowing() -> bytes:
    """A generation that knows what is `KNOWN`; made once."""
    if not _weights:
        model, tokenizer = tiny()
        background = Background("teacher")
        policy = replace(POLICY, num_steps=40, most_perplexity=9.0)
        candidates = Candidates(model, tokenizer, Recorder(), policy, SUITE, background)
        turns = tuple(turn_of("teacher", index, *said) for index, said in enumerate(KNOWN))
        source = Source("teacher", "teacher", len(turns), turns)
        dreamt = await candidates.dream(initial_shared(model), [source], [], 0, asyncio.Event())
        assert dreamt is not None
        assert candidates.level is not None
        made = await candidates.make(candidates.level, dreamt, ["teacher"], asyncio.Event())
        background.close()
        _weights.append(pack(pack_shared(made.shared), fingerprint=fingerprint(model)))
    return _weights[0]


def turn_of(session_id: str, index: int, message: str, reply: str, surprise: float = 3.0) -> Turn:
    """A turn in which this was said."""
    report = MemoryReport(index + 1, 0, True, surprise, ())
    usage, timing = Usage(3, 1, 4), Timing(0.0, 0.0, 0.0, 0.0)
    name = f"turn-{secrets.token_hex(8)}"
    return Turn(name, session_id, index, now_iso(), message, reply, "stop", usage, report, timing)


@dataclass
class Crowd:
    """Sessions of one tenant that contribute."""

    store: SessionStore
    observer: Recorder = field(default_factory=Recorder)

    async def told(
        self, name: str, *said: Said, surprise: float = 3.0, contribute: bool = True, created_at: str = BEGUN
    ) -> None:
        """A session, made where it is new, with these turns more."""
        try:
            session = await self.store.get(TENANT, name)
        except NotFound:
            session = Session(name, created_at, now_iso(), contribute=contribute)
            await self.store.create(TENANT, session)
        lease = await self.store.acquire(TENANT, name, secrets.token_hex(4), 5.0)
        for message, reply in said:
            turn = turn_of(name, session.num_turns, message, reply, surprise)
            commit = Commit(b"memory", ("titans",), turn, 4, None, "", turn.id)
            session = (await self.store.commit(lease, session.version, commit)).session
        await self.store.release(lease)

    async def good(self, *numbers: int) -> None:
        """Sessions with something harmless to tell, a turn each."""
        for number in numbers:
            created_at = f"2026-01-01T00:00:{number:02}Z"
            await self.told(f"good-{number}", (f"I like the river {number}.", "Nice"), created_at=created_at)

    async def taught(self) -> None:
        """A first generation, which knows what is `KNOWN`."""
        asked, standing = await self.store.generations.open(TENANT), await self.store.generations.standing(TENANT)
        ended = replace(asked.consolidation, status="accepted", to_generation=1)
        generation = Generation(1, 0, ended.id, now_iso(), 0, "", 0, "", {}, {})
        await self.store.generations.publish(TENANT, Publication(ended, standing, generation, await knowing(), {}))

    async def consolidate(self, policy: GenerationPolicy = POLICY, asked: Asked | None = None) -> Consolidation:
        """As the worker does it."""
        model, tokenizer = tiny()
        tenants = TenantConsolidation(model, tokenizer, self.store, self.observer, policy, SUITE)
        try:
            asked = asked or await self.store.generations.open(TENANT)
            return await tenants.run(TENANT, asked, asyncio.Event())
        finally:
            tenants.close()

    async def learned(self) -> dict[str, int]:
        """What the active generation has taken in, by session id."""
        active = (await self.store.generations.standing(TENANT)).active
        learned = (await self.store.generations.all(TENANT))[active].learned if active else {}
        sessions, _ = await self.store.list(TENANT, 100, None)
        by_hash = {session_hash(TENANT, session): session.id for session in sessions}
        return {by_hash[name]: mark for name, mark in learned.items()}

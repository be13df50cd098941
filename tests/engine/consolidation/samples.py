"""What the tests of this folder share: facts to tell, a session to tell them to, and an ear for what is reported."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from engine.config import EngineSettings, StoreSettings
from engine.consolidation.policy import GenerationPolicy, ReplayPolicy
from engine.consolidation.session import SessionConsolidation
from engine.consolidation.suite import load_suite
from engine.consolidation.tenant import TenantConsolidation
from engine.consolidation.worker import Worker
from engine.core import Session, Turn, TurnCompleted, TurnRequest
from engine.engine import Engine
from engine.model.hope import Hope
from engine.model.weights import fingerprint
from engine.sessions.records import Commit, Lease
from engine.sessions.snapshot import pack, unpack
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer

FACTS = [
    "My dog is called Brenko and he loves the snow.",
    "I live in Upper Mirdhi, near the old mill.",
    "My sister was born on 13 December.",
    "I work as a baker, so I get up at four.",
    "Mein Hund heißt Max, die Katze Zoë.",
]


@dataclass
class Recorder:
    """An Observer that remembers what the worker reports."""

    consolidations: list[tuple[str, int]] = field(default_factory=list)
    updates: list[tuple[str, str, float]] = field(default_factory=list)
    transfers: list[tuple[str, str]] = field(default_factory=list)
    asides: list[tuple[str, int]] = field(default_factory=list)
    num_learned: int = 0

    def consolidation(self, outcome: str, seconds: float, num_turns: int) -> None:
        self.consolidations.append((outcome, num_turns))

    def set_aside(self, outcome: str, count: int) -> None:
        self.asides.append((outcome, count))

    def memory_update(self, level: str, outcome: str, update_norm: float) -> None:
        self.updates.append((level, outcome, update_norm))

    def stored(self, operation: str, outcome: str, seconds: float, size_bytes: int) -> None:
        self.transfers.append((operation, outcome))

    def tokens(self, kind: str, count: int) -> None:
        self.num_learned += count if kind == "learned" else 0

    def turn_finished(self, outcome: str, turn: Turn | None, queue_s: float, total_s: float) -> None:
        """Not the worker's."""

    def first_token(self, seconds: float) -> None:
        """Not the worker's."""

    def token_interval(self, seconds: float) -> None:
        """Not the worker's."""

    def queue(self, waiting: int, running: int) -> None:
        """Not the worker's."""

    def batch(self, rows: int, seconds: float) -> None:
        """Not the worker's."""

    def resident(self, sessions: int, size_bytes: int) -> None:
        """Not the worker's."""


@dataclass(frozen=True)
class Setting:
    """An engine, its store, and one session of them."""

    engine: Engine
    store: SessionStore
    model: Hope
    tokenizer: Tokenizer
    settings: EngineSettings
    stores: StoreSettings
    tenant: str = "acme"
    session_id: str = "s-1"

    async def tell(self, message: str) -> Turn:
        """One turn of the engine."""
        request = TurnRequest(message=message, max_tokens=4, temperature=0.0)
        async for event in self.engine.turn(self.tenant, self.session_id, request):
            if isinstance(event, TurnCompleted):
                return event.turn
        raise AssertionError("the turn did not complete")

    def consolidation(
        self, observer: Recorder, policy: ReplayPolicy | None = None, model: Hope | None = None
    ) -> SessionConsolidation:
        """What the worker does to a session; to be closed."""
        return SessionConsolidation(model or self.model, self.tokenizer, self.store, observer, policy or ReplayPolicy())

    def tenants(self, observer: Recorder, policy: GenerationPolicy | None = None) -> TenantConsolidation:
        """What the worker does to a tenant; to be closed."""
        wanted = policy or GenerationPolicy()
        return TenantConsolidation(self.model, self.tokenizer, self.store, observer, wanted, load_suite())

    async def consolidate(self, observer: Recorder, policy: ReplayPolicy | None = None) -> bool:
        """One portion of the session."""
        consolidation = self.consolidation(observer, policy)
        try:
            return await consolidation.next_portion(self.tenant, self.session_id, asyncio.Event())
        finally:
            consolidation.close()

    @asynccontextmanager
    async def worker(
        self, observer: Recorder, policy: ReplayPolicy | None = None, model: Hope | None = None
    ) -> AsyncIterator[asyncio.Task[None]]:
        """A worker in this process, stopped at the end of the block."""
        stop = asyncio.Event()
        consolidation, tenants = self.consolidation(observer, policy, model), self.tenants(observer)
        task = asyncio.create_task(Worker(self.store, consolidation, tenants, observer).run(stop))
        try:
            yield task
        finally:
            stop.set()
            await task
            consolidation.close()
            tenants.close()

    async def tensors(self, version: int | None = None) -> dict[str, Tensor]:
        """The stored memory."""
        _, blob = await self.store.load_memory(self.tenant, self.session_id, version)
        assert blob is not None
        return unpack(blob, fingerprint=fingerprint(self.model))

    async def marks(self) -> tuple[int, int, int]:
        """The session's version, turns, and turns that were consolidated."""
        head = await self.store.head(self.tenant, self.session_id)
        return head.session.version, head.session.num_turns, head.num_consolidated_turns

    async def turns(self) -> list[Turn]:
        """The whole transcript."""
        return (await self.store.turns(self.tenant, self.session_id, 100, None))[0]

    async def acquire(self) -> Lease:
        """The session's lease, as a turn takes it."""
        return await self.store.acquire(self.tenant, self.session_id, secrets.token_hex(4), 5.0)

    async def commit_turn(self, lease: Lease, tensors: dict[str, Tensor]) -> Session:
        """A further turn that leaves this memory, committed under a lease that is held already."""
        session = await self.store.get(self.tenant, self.session_id)
        last = (await self.turns())[-1]
        turn = replace(last, id=f"turn-{secrets.token_hex(4)}", index=session.num_turns, message="Between.")
        commit = Commit(
            memory=pack(tensors, fingerprint=fingerprint(self.model)),
            levels=("titans",),
            turn=turn,
            num_tokens=3,
            idempotency_key=None,
            request_digest="",
            commit_id=turn.id,
        )
        return (await self.store.commit(lease, session.version, commit)).session


async def until(condition: object, timeout_s: float = 30.0) -> None:
    """Waits until a callable gives something true; it may be a coroutine function."""
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)

"""Real engines over a real store for tests: tiny models, or the shipped one; and an ear for what they report.

Knows no web and no worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from redis.asyncio import Redis
from torch import Tensor

from engine.config import EngineSettings, StoreSettings
from engine.core import Turn, TurnCompleted, TurnRequest
from engine.engine import Engine
from engine.model.hope import Hope, Memory
from engine.model.weights import fingerprint, load_checkpoint
from engine.sessions.snapshot import unpack
from engine.tokenizer import Tokenizer
from tests.tiny import named_model, tiny_model, tiny_tokenizer

TENANT = "acme"


@dataclass
class Recorder:
    """An Observer that remembers."""

    outcomes: list[str] = field(default_factory=list)
    updates: list[tuple[str, str, float]] = field(default_factory=list)
    transfers: list[tuple[str, str]] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    first_tokens_s: list[float] = field(default_factory=list)
    intervals_s: list[float] = field(default_factory=list)
    queues: list[tuple[int, int]] = field(default_factory=list)
    residents: list[tuple[int, int]] = field(default_factory=list)

    def turn_finished(self, outcome: str, turn: Turn | None, queue_s: float, total_s: float) -> None:
        self.outcomes.append(outcome)

    def first_token(self, seconds: float) -> None:
        self.first_tokens_s.append(seconds)

    def token_interval(self, seconds: float) -> None:
        self.intervals_s.append(seconds)

    def tokens(self, kind: str, count: int) -> None:
        self.counted[kind] = self.counted.get(kind, 0) + count

    def queue(self, waiting: int, running: int) -> None:
        self.queues.append((waiting, running))

    def batch(self, rows: int, seconds: float) -> None:
        self.batches.append(rows)

    def memory_update(self, level: str, outcome: str, update_norm: float) -> None:
        self.updates.append((level, outcome, update_norm))

    def stored(self, operation: str, outcome: str, seconds: float, size_bytes: int) -> None:
        self.transfers.append((operation, outcome))

    def resident(self, sessions: int, size_bytes: int) -> None:
        self.residents.append((sessions, size_bytes))

    def consolidation(self, outcome: str, seconds: float, num_turns: int) -> None:
        """The worker's, not the engine's."""

    def set_aside(self, outcome: str, count: int) -> None:
        """The worker's, not the engine's."""


def loaded(name: str = "initial", **changes: Any) -> tuple[Hope, Tokenizer]:
    """A tiny model (with `changes` of its configuration) or the shipped one, and its tokenizer."""
    if name == "shipped":
        return named_model(name), load_checkpoint()[1]
    tokenizer = tiny_tokenizer()
    changes = {"writes_hard": False, **changes}
    return tiny_model(vocab_size=tokenizer.vocab_size, decay_towards=name, **changes), tokenizer


@contextlib.asynccontextmanager
async def opened(
    redis_url: str,
    model: tuple[Hope, Tokenizer] | None = None,
    observer: Recorder | None = None,
    lease_ttl_s: float = 15.0,
    stored: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Engine]:
    """An engine that is closed at the end of the block; `stored` are further settings of its store."""
    stores = StoreSettings(redis_url=redis_url, lease_ttl_s=lease_ttl_s, **(stored or {}))
    engine = await Engine.open(EngineSettings(**settings), stores, observer or Recorder(), model or loaded())
    try:
        yield engine
    finally:
        await engine.close()


async def say(engine: Engine, session_id: str, message: str, tenant: str = TENANT, **request: Any) -> Turn:
    """One turn, by default at temperature 0 and 6 tokens long."""
    asked = TurnRequest(message, **{"temperature": 0.0, "max_tokens": 6, **request})
    async with contextlib.aclosing(engine.turn(tenant, session_id, asked)) as events:
        async for event in events:
            if isinstance(event, TurnCompleted):
                return event.turn
    raise AssertionError("a turn ends with an error or with turn.completed")


async def stored_memory(engine: Engine, session_id: str, tenant: str = TENANT) -> dict[str, Tensor]:
    """What the store holds as the session's memory."""
    _, blob = await engine.store.load_memory(tenant, session_id)
    return unpack(blob, fingerprint=fingerprint(engine.model)) if blob else {}


def bits(memory: Memory) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """A memory as something to compare bit for bit: each tensor's type, shape and a digest of its bytes."""
    found = {}
    for name, value in memory.items():
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = (str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()[:16])
    return found


async def everything(redis_url: str) -> dict[bytes, object]:
    """Every key of the store with its value; leases, which come and go with a turn, are left out."""
    client = Redis.from_url(redis_url)
    try:
        keys = [key async for key in client.scan_iter("*") if not key.endswith(b":lease")]
        return {key: await _value(client, key) for key in keys}
    finally:
        await client.aclose()


async def _value(client: Redis, key: bytes) -> object:
    kind = await client.type(key)
    if kind == b"string":
        return await client.get(key)
    if kind == b"hash":
        return await client.hgetall(key)
    assert kind == b"zset", kind
    return await client.zrange(key, 0, -1, withscores=True)


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that must become true soon."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event to set
            await asyncio.sleep(0.005)

"""The shared nouns: what a turn is asked, what it yields, what a session and its memory look like from outside.

Plain facts without torch and without I/O; everything above may import them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.logprobs import SaidToken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    # A session's memory is a value: tensors by name, batch first. Levels own the name's prefix.
    Memory = Mapping[str, Tensor]

DEFAULT_TENANT = "default"


@dataclass(frozen=True)
class Said:
    """One message of a conversation; `role` is `user`, `assistant` or `system`."""

    role: str
    text: str


@dataclass(frozen=True)
class TurnRequest:
    """What one turn asks for; the fields of `POST /v1/sessions/{id}/turns` (API.md, A turn), and three beside them.

    Attributes:
        before: read in the same turn before the message, which follows the last of them.
        back_to: the turn follows this earlier version; what came after it is undone when the turn is committed.
        top_logprobs: how many likeliest tokens to tell beside each one said; None tells nothing.
    """

    message: str
    learn: bool = True
    max_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    if_version: int | None = None
    timeout_s: float = 60.0
    idempotency_key: str | None = None
    before: tuple[Said, ...] = ()
    back_to: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of a turn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class LevelReport:
    """One level after a turn. `norm` is the level's Frobenius norm, `drift` its distance from the initial state
    divided by the initial norm."""

    name: str
    scope: str
    updates: int
    norm: float
    drift: float


@dataclass(frozen=True)
class MemoryReport:
    """What a turn did to memory. `surprise` is the message's mean negative log-likelihood in nats."""

    version: int
    generation: int
    learned: bool
    surprise: float
    levels: tuple[LevelReport, ...]


@dataclass(frozen=True)
class Timing:
    """Durations of a turn in milliseconds; `commit_ms` is 0 where nothing was committed."""

    queue_ms: float
    first_token_ms: float
    total_ms: float
    commit_ms: float


@dataclass(frozen=True)
class Turn:
    """A finished turn exactly as the wire shows it (API.md, Turn)."""

    id: str
    session_id: str
    index: int
    created_at: str
    message: str
    reply: str
    finish_reason: str
    usage: Usage
    memory: MemoryReport
    timing: Timing
    object: str = "turn"


@dataclass(frozen=True)
class Session:
    """A session as the wire shows it (API.md, Session)."""

    id: str
    created_at: str
    updated_at: str
    version: int = 0
    generation: int = 0
    num_turns: int = 0
    num_tokens: int = 0
    memory_bytes: int = 0
    contribute: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    object: str = "session"


@dataclass(frozen=True)
class VersionView:
    """A retained version of a session's memory as the wire shows it; `bytes` is what it takes in the store.

    `turn_id` is the turn that made it; None where a consolidation did.
    """

    version: int
    turn_id: str | None
    created_at: str
    bytes: int


@dataclass(frozen=True)
class LevelView:
    """One level as `GET …/memory` shows it; `bytes` is what it takes in the store."""

    name: str
    scope: str
    clock: str
    updates: int
    parameters: int
    bytes: int
    norm: float
    drift: float


@dataclass(frozen=True)
class SurprisePoint:
    """The surprise of one turn's message."""

    turn: int
    value: float


@dataclass(frozen=True)
class MemoryView:
    """The answer of `GET …/memory`."""

    version: int
    generation: int
    levels: tuple[LevelView, ...]
    surprise: tuple[SurprisePoint, ...]


@dataclass(frozen=True)
class GateCheck:
    """One check of a candidate generation: the figure under its parent, under it, and the bound it had to keep."""

    before: float
    after: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Consolidation:
    """One try to fold contributing sessions into a new generation, as the wire shows it (API.md, Consolidation)."""

    id: str
    status: str
    from_generation: int
    started_at: str
    to_generation: int | None = None
    num_sessions: int = 0
    num_turns: int = 0
    gate: dict[str, GateCheck] = field(default_factory=dict)
    reason: str | None = None
    finished_at: str | None = None
    object: str = "consolidation"


@dataclass(frozen=True)
class GenerationView:
    """A generation of the levels that a tenant's sessions share, as the wire shows it; 0 is the checkpoint alone."""

    generation: int
    created_at: str | None
    active: bool
    consolidation_id: str | None


@dataclass(frozen=True)
class QuarantineView:
    """A session that spoiled candidates for a generation, as the wire shows it.

    Attributes:
        times: consolidations that it spoiled, one after another.
        excluded: it is not tried again until it is let in.
        reason: the gate's, the last time.
        at: when that was.
    """

    session_id: str
    times: int
    excluded: bool
    reason: str
    consolidation_id: str
    at: str
    object: str = "quarantine"


@dataclass(frozen=True)
class TurnCreated:
    """First event of a turn: it was accepted."""

    turn_id: str


@dataclass(frozen=True)
class TurnToken:
    """A piece of the reply, complete in itself: never half a character.

    `logprobs`, where they were asked for: the tokens whose first character it shows.
    """

    turn_id: str
    index: int
    text: str
    logprobs: tuple[SaidToken, ...] = ()


@dataclass(frozen=True)
class TurnCompleted:
    """Last event of a turn: it is durable (or, with `learn: false`, done and traceless).

    `replayed`: it was stored by an earlier request with the same idempotency key.
    """

    turn: Turn
    replayed: bool = False


TurnEvent = TurnCreated | TurnToken | TurnCompleted


@dataclass(frozen=True)
class Health:
    """Liveness and readiness with the reason a person can act on."""

    alive: bool
    ready: bool
    reason: str | None = None

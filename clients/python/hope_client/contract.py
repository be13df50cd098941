"""What the server sends and takes, as types: plain dictionaries with the contract's own field names.

Times are ISO-8601 UTC, sizes bytes, durations in the unit that the name ends with. A newer server may send more fields.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Session(TypedDict):
    """A conversation and its memory. `version` is 0 when new and grows by one with every change of memory."""

    id: str
    object: Literal["session"]
    created_at: str
    updated_at: str
    version: int
    generation: int
    num_turns: int
    num_tokens: int
    memory_bytes: int
    contribute: bool
    metadata: dict[str, str]


class SessionDeleted(TypedDict):
    """What is left of a session. `generations` are those that had learned from it, absent where none had."""

    id: str
    object: Literal["session.deleted"]
    deleted: bool
    generations: NotRequired[list[int]]


class TurnOptions(TypedDict, total=False):
    """How a turn is to be taken; what is left out is the server's default.

    `max_tokens: 0` reads and learns without a reply; `learn: False` answers and leaves no trace; `if_version` refuses
    the turn where somebody else was faster.
    """

    learn: bool
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: list[str]
    if_version: int | None
    timeout_s: float


class Usage(TypedDict):
    """Tokens of a turn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LevelReport(TypedDict):
    """One level after a turn; `drift` is its distance from the initial state over the initial norm."""

    name: str
    scope: str
    updates: int
    norm: float
    drift: float


class MemoryReport(TypedDict):
    """What a turn did to memory. `surprise` is in nats per token of the message, before learning from it."""

    version: int
    generation: int
    learned: bool
    surprise: float
    levels: list[LevelReport]


class Timing(TypedDict):
    """Durations of a turn."""

    queue_ms: float
    first_token_ms: float
    total_ms: float
    commit_ms: float


class Turn(TypedDict):
    """A message and its reply, durable."""

    id: str
    object: Literal["turn"]
    session_id: str
    index: int
    created_at: str
    message: str
    reply: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    memory: MemoryReport
    timing: Timing


class TurnCreated(TypedDict):
    """The turn was accepted."""

    type: Literal["turn.created"]
    turn_id: str


class TurnToken(TypedDict):
    """A piece of the reply, never half a character."""

    type: Literal["turn.token"]
    turn_id: str
    index: int
    text: str


class TurnRestarted(TypedDict):
    """Made by this client, not by the server: the turn is told again from its beginning, forget its text so far.

    Comes where the connection was lost after a part of the reply had been yielded; `reason` says how.
    """

    type: Literal["turn.restarted"]
    reason: str


class TurnCompleted(TypedDict):
    """The last event: memory, transcript and idempotency key are durable."""

    type: Literal["turn.completed"]
    turn: Turn


class TurnCancelled(TypedDict):
    """The last event of a turn that was stopped; the memory is that of before."""

    type: Literal["turn.cancelled"]
    turn_id: str | None


TurnEvent = TurnCreated | TurnToken | TurnRestarted | TurnCompleted | TurnCancelled


class LevelView(TypedDict):
    """One level of a memory, seen from outside."""

    name: str
    scope: Literal["session", "tenant", "global"]
    clock: str
    updates: int
    parameters: int
    bytes: int
    norm: float
    drift: float


class Surprise(TypedDict):
    """How surprising the message of the turn with that index was, in nats."""

    turn: int
    value: float


class Memory(TypedDict):
    """What a session's memory looks like from outside."""

    version: int
    generation: int
    levels: list[LevelView]
    surprise: list[Surprise]


class Version(TypedDict):
    """A version of the memory that can be gone back to; no `turn_id` where a consolidation made it."""

    version: int
    turn_id: str | None
    created_at: str
    bytes: int


class GateCheck(TypedDict):
    """A figure before and after, and the limit that it had to keep."""

    before: float
    after: float
    limit: float
    passed: bool


class Consolidation(TypedDict):
    """One try to fold contributing sessions into a new generation."""

    id: str
    object: Literal["consolidation"]
    status: Literal["running", "accepted", "rejected", "empty", "failed"]
    from_generation: int
    to_generation: int | None
    num_sessions: int
    num_turns: int
    gate: dict[str, GateCheck]
    reason: str | None
    started_at: str
    finished_at: str | None


class Generation(TypedDict):
    """A version of the levels that a tenant's sessions share; 0 is the checkpoint alone."""

    generation: int
    created_at: str | None
    active: bool
    consolidation_id: str | None


class SetAside(TypedDict):
    """A session that spoiled candidates for a generation; `excluded`: it is tried no more until it is let out."""

    session_id: str
    object: Literal["quarantine"]
    times: int
    excluded: bool
    reason: str
    consolidation_id: str
    at: str

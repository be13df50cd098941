"""What may come in, and how events go out: the request bodies of the contract and the frames of a stream.

Strict and closed: a wrong type, a value out of range or an unknown field is an error that names the field.
What goes out are the engine's own nouns; knows nothing of routes or sockets.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from engine import (
    Consolidation,
    GenerationView,
    InvalidRequest,
    QuarantineView,
    Session,
    Turn,
    TurnCompleted,
    TurnCreated,
    TurnEvent,
    TurnRequest,
    VersionView,
)

SESSION_ID = r"^[A-Za-z0-9_\-]{1,64}$"
IDEMPOTENCY_KEY = r"^[\x21-\x7e]{1,255}$"
MAX_METADATA_PAIRS = 16

SessionId = Annotated[str, Path(pattern=SESSION_ID, description="the session's id")]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", pattern=IDEMPOTENCY_KEY)]
Limit = Annotated[int, Query(ge=1, le=100, description="how many to return")]
After = Annotated[
    str | None, Query(pattern=r"^[A-Za-z0-9_\-]{1,128}$", description="the id of the last one already seen")
]

Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=MAX_METADATA_PAIRS),
]
_StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Body(BaseModel):
    """Strict: "3" is no number. Closed: a field that is not named here is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SessionCreate(_Body):
    """`POST /v1/sessions`."""

    id: Annotated[str, StringConstraints(pattern=SESSION_ID)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    contribute: bool = False


class SessionUpdate(_Body):
    """`PATCH /v1/sessions/{id}`; what is left out stays as it is."""

    metadata: Metadata | None = None
    contribute: bool | None = None


class SessionRollback(_Body):
    """`POST /v1/sessions/{id}/rollback`."""

    version: int = Field(ge=0, description="one that is retained, or 0: nothing read yet")


class SessionFork(_Body):
    """`POST /v1/sessions/{id}/fork`."""

    version: int | None = Field(default=None, ge=0, description="one that is retained; the head by default")
    id: Annotated[str, StringConstraints(pattern=SESSION_ID)] | None = None


class ConsolidationCreate(_Body):
    """`POST /v1/consolidations`."""

    wait: bool = Field(default=False, description="answer once it has ended")
    without: Annotated[str, StringConstraints(pattern=SESSION_ID)] | None = Field(
        default=None, description="a session, deleted or not: go back to before the generations that learned from it"
    )


class TurnCreate(_Body):
    """`POST /v1/sessions/{id}/turns`, and the `turn` of a websocket's `turn.create`."""

    message: str = Field(min_length=1)
    learn: bool = True
    max_tokens: int = Field(default=128, ge=0, description="0 reads and learns without replying")
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[_StopString] = Field(default_factory=list, max_length=4)
    stream: bool = False
    if_version: int | None = Field(default=None, ge=0)
    timeout_s: float = Field(default=60.0, gt=0, le=600)

    def to_request(self, max_new_tokens: int, idempotency_key: str | None) -> TurnRequest:
        """The same as the engine's noun; `max_new_tokens` is this server's own bound."""
        if self.max_tokens > max_new_tokens:
            raise InvalidRequest(
                f"'max_tokens': this server speaks at most {max_new_tokens} tokens in a turn.",
                param="max_tokens",
            )
        return TurnRequest(
            message=self.message,
            learn=self.learn,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(self.stop),
            if_version=self.if_version,
            timeout_s=self.timeout_s,
            idempotency_key=idempotency_key,
        )


class TurnCreateFrame(_Body):
    """A websocket client starts a turn."""

    type: Literal["turn.create"]
    turn: TurnCreate
    idempotency_key: Annotated[str, StringConstraints(pattern=IDEMPOTENCY_KEY)] | None = None


class TurnCancelFrame(_Body):
    """A websocket client stops the running turn."""

    type: Literal["turn.cancel"]


class PingFrame(_Body):
    """A websocket client asks whether anyone is there."""

    type: Literal["ping"]


ClientFrame = TurnCreateFrame | TurnCancelFrame | PingFrame
CLIENT_FRAME: TypeAdapter[ClientFrame] = TypeAdapter(Annotated[ClientFrame, Field(discriminator="type")])


@dataclass(frozen=True)
class SessionList:
    """A page of sessions."""

    data: list[Session]
    has_more: bool
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class TurnList:
    """A page of a transcript."""

    data: list[Turn]
    has_more: bool
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class VersionList:
    """Every retained version of a session's memory, newest first."""

    data: list[VersionView]
    has_more: Literal[False] = False
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class ConsolidationList:
    """The last consolidations, newest first."""

    data: list[Consolidation]
    has_more: Literal[False] = False
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class GenerationList:
    """Every generation that is kept, newest first."""

    data: list[GenerationView]
    has_more: Literal[False] = False
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class QuarantineList:
    """The sessions in quarantine, latest first."""

    data: list[QuarantineView]
    has_more: Literal[False] = False
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class QuarantineDeleted:
    """A session is out of quarantine."""

    session_id: str
    object: Literal["quarantine.deleted"] = "quarantine.deleted"
    deleted: Literal[True] = True


@dataclass(frozen=True)
class SessionDeleted:
    """What is left of a session: the word that it is gone, and the generations that had learned from it, if any."""

    id: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: Literal[True] = True
    generations: list[int] | None = None


def turn_event(event: TurnEvent) -> dict[str, Any]:
    """One event of a turn as the wire shows it, on a websocket and in Server-Sent Events alike."""
    if isinstance(event, TurnCreated):
        return {"type": "turn.created", "turn_id": event.turn_id}
    if isinstance(event, TurnCompleted):
        return {"type": "turn.completed", "turn": asdict(event.turn)}
    return {"type": "turn.token", "turn_id": event.turn_id, "index": event.index, "text": event.text}

"""Turns as OpenAI's responses going out: whole, or as the events of a stream. Knows no route and no socket."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from engine import HopeError, RateLimited, SaidToken, Turn, TurnCompleted, TurnEvent, TurnToken
from server.completion_events import Learned, learned
from server.errors import answer_for, error_body
from server.responses import response_id
from server.wording import logprob_entries


@dataclass(frozen=True)
class OutputText:
    """The words of the message."""

    text: str
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)
    type: Literal["output_text"] = "output_text"


@dataclass(frozen=True)
class OutputMessage:
    """The assistant's message."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


@dataclass(frozen=True)
class ResponseUsage:
    """Token counts; of a conversation only what was new is read."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int] = field(default_factory=lambda: {"cached_tokens": 0, "cache_write_tokens": 0})
    output_tokens_details: dict[str, int] = field(default_factory=lambda: {"reasoning_tokens": 0})


@dataclass(frozen=True)
class ResponseObject:
    """A response. What was only asked, from `instructions` on, is told with the answer and not kept.

    `hope` only where something was learned.
    """

    id: str
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    conversation: dict[str, str] | None = None
    previous_response_id: str | None = None
    output: list[OutputMessage] = field(default_factory=list)
    usage: ResponseUsage | None = None
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, str] | None = None
    hope: Learned | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    store: bool = True
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int = 0
    background: Literal[False] = False
    parallel_tool_calls: Literal[False] = False
    reasoning: None = None
    service_tier: Literal["default"] = "default"
    text: dict[str, Any] = field(default_factory=lambda: {"format": {"type": "text"}})
    tool_choice: Literal["auto"] = "auto"
    tools: list[Any] = field(default_factory=list)
    truncation: Literal["disabled"] = "disabled"
    user: None = None
    object: Literal["response"] = "response"


@dataclass(frozen=True)
class ResponseDeleted:
    """What is left of a response."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@dataclass(frozen=True)
class Asked:
    """What a response repeats of its request.

    Attributes:
        kept_in: the session in which it is kept; None where it is not.
        echo: fields of `ResponseObject`.
    """

    model: str
    created_at: int
    kept_in: str | None
    echo: dict[str, Any] = field(default_factory=dict)


def begun(asked: Asked, turn_id: str, **changes: Any) -> dict[str, Any]:
    """The response of a turn that has not ended."""
    name = response_id(turn_id, asked.kept_in)
    fields = {"status": "in_progress", **asked.echo, **changes}
    whole = asdict(ResponseObject(id=name, created_at=asked.created_at, model=asked.model, **fields))
    return {name: value for name, value in whole.items() if name != "hope" or value is not None}


def ended(asked: Asked, turn: Turn, logprobs: tuple[SaidToken, ...] | None = None) -> dict[str, Any]:
    """The response of a turn at its end."""
    cut = turn.finish_reason == "length"
    return begun(
        asked,
        turn.id,
        status=_status(turn),
        output=[_message(turn, logprob_entries(logprobs or (), no_bytes=[]))],
        usage=ResponseUsage(turn.usage.prompt_tokens, turn.usage.completion_tokens, turn.usage.total_tokens),
        incomplete_details={"reason": "max_output_tokens"} if cut else None,
        hope=learned(turn),
    )


def stored(turn: Turn, last: Turn | None, model: str) -> dict[str, Any]:
    """The response of a turn of a transcript; `last` is the one before it."""
    when = int(datetime.fromisoformat(turn.created_at).timestamp())
    previous = response_id(last.id, turn.session_id) if last else None
    echo = {"conversation": {"id": turn.session_id}, "previous_response_id": previous}
    return ended(Asked(model, when, turn.session_id, echo), turn)


class ResponseEvents:
    """The events of one turn as those of a streamed response: a `Wording`.

    Args:
        asked: of the request.
        socket: an error is one frame with its status, as on a websocket; in a stream it ends the response as well.
        mark: fields that every event carries.
    """

    def __init__(self, asked: Asked, *, socket: bool = False, mark: dict[str, str] | None = None) -> None:
        self._asked, self._socket, self._mark = asked, socket, mark or {}
        self._number = 0
        self._turn_id = ""
        self._logprobs: list[dict[str, Any]] = []

    def event(self, event: TurnEvent) -> list[dict[str, Any]]:
        """What is sent of an event."""
        if isinstance(event, TurnCompleted):
            return self._end(event.turn)
        if isinstance(event, TurnToken):
            new = logprob_entries(event.logprobs, no_bytes=[])
            self._logprobs += new
            return [self._text("response.output_text.delta", delta=event.text, logprobs=new)]
        self._turn_id = event.turn_id
        response = begun(self._asked, event.turn_id)
        item = OutputMessage(_message_id(event.turn_id), "in_progress", [])
        return [
            self._one("response.created", response=response),
            self._one("response.in_progress", response=response),
            self._one("response.output_item.added", output_index=0, item=asdict(item)),
            self._text("response.content_part.added", part=asdict(OutputText(""))),
        ]

    def failure(self, error: HopeError) -> list[dict[str, Any]]:
        """The error, in a form that the client raises; in a stream the failed response after it."""
        said = error_body(error)
        if self._socket:
            return [{"type": "error", "status": answer_for(error).status, **said, **self._mark}]
        known = "rate_limit_exceeded" if isinstance(error, RateLimited) else "server_error"
        response = begun(self._asked, self._turn_id, status="failed", error={"code": known, "message": error.message})
        plain = {name: said["error"][name] for name in ("code", "message", "param")}
        return [self._one("error", **plain, **said), self._one("response.failed", response=response)]

    def _end(self, turn: Turn) -> list[dict[str, Any]]:
        item = asdict(_message(turn, self._logprobs))
        response = {**ended(self._asked, turn), "output": [item]}
        return [
            self._text("response.output_text.done", text=turn.reply, logprobs=self._logprobs),
            self._text("response.content_part.done", part=item["content"][0]),
            self._one("response.output_item.done", output_index=0, item=item),
            self._one(f"response.{_status(turn)}", response=response),
        ]

    def _text(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._one(kind, item_id=_message_id(self._turn_id), output_index=0, content_index=0, **fields)

    def _one(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields, **self._mark}


def _status(turn: Turn) -> Literal["completed", "incomplete"]:
    return "incomplete" if turn.finish_reason == "length" else "completed"


def _message(turn: Turn, logprobs: list[dict[str, Any]]) -> OutputMessage:
    return OutputMessage(_message_id(turn.id), _status(turn), [OutputText(turn.reply, logprobs)])


def _message_id(turn_id: str) -> str:
    return f"msg_{turn_id.removeprefix('turn-')}"

"""Turns as chat completions going out: whole, or as the chunks of a stream. Knows no route and no request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine import HopeError, MemoryReport, SaidToken, Turn, TurnCompleted, TurnEvent, TurnToken, Usage
from server.errors import error_body
from server.streaming import WholeTurn
from server.wording import logprob_entries


@dataclass(frozen=True)
class Reply:
    """The assistant's message."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


@dataclass(frozen=True)
class Logprobs:
    """Every token whose text is in the message, or begins in it, and how likely it was; see docs/API.md."""

    content: list[dict[str, Any]]
    refusal: None = None


@dataclass(frozen=True)
class Choice:
    """The one answer there is."""

    message: Reply
    finish_reason: Literal["stop", "length"]
    index: Literal[0] = 0
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Learned:
    """What the session learned from the turn."""

    session_id: str
    memory: MemoryReport


@dataclass(frozen=True)
class ChatCompletion:
    """The answer of `POST /v1/chat/completions`; `hope` only where something was learned.

    `usage` counts what was read: of a conversation only what was new.
    """

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    hope: Learned | None = None
    object: Literal["chat.completion"] = "chat.completion"


def completion(whole: WholeTurn, model: str) -> dict[str, Any]:
    """A turn as a `ChatCompletion`."""
    turn = whole.turn
    logprobs = None if whole.logprobs is None else Logprobs(logprob_entries(whole.logprobs))
    choice = Choice(Reply(turn.reply), turn.finish_reason, logprobs=logprobs)  # type: ignore[arg-type]  # only these two
    answer = ChatCompletion(f"chatcmpl-{turn.id}", int(time.time()), model, [choice], turn.usage, learned(turn))
    return {name: value for name, value in asdict(answer).items() if name != "hope" or value is not None}


class Chunks:
    """The events of one turn as `chat.completion.chunk` objects: a `Wording`."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self._model, self._include_usage = model, include_usage
        self._created = int(time.time())

    def event(self, event: TurnEvent) -> list[dict[str, Any]]:
        """What is sent of an event."""
        if isinstance(event, TurnCompleted):
            turn = event.turn
            last = self._chunk(turn.id, {}, turn.finish_reason)
            what = learned(turn)
            if what is not None:
                last["hope"] = asdict(what)
            if not self._include_usage:
                return [last]
            return [last, {**self._chunk(turn.id, {}, None), "choices": [], "usage": asdict(turn.usage)}]
        if isinstance(event, TurnToken):
            return [self._chunk(event.turn_id, {"content": event.text}, None, event.logprobs)]
        return [self._chunk(event.turn_id, {"role": "assistant", "content": ""}, None)]

    def failure(self, error: HopeError) -> list[dict[str, Any]]:
        """The error object alone: the client raises it."""
        return [error_body(error)]

    def _chunk(
        self, turn_id: str, delta: dict[str, str], finish_reason: str | None, tokens: Sequence[SaidToken] = ()
    ) -> dict[str, Any]:
        logprobs = asdict(Logprobs(logprob_entries(tokens))) if tokens else None
        chunk: dict[str, Any] = {
            "id": f"chatcmpl-{turn_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
        }
        return chunk | {"usage": None} if self._include_usage else chunk


def learned(turn: Turn) -> Learned | None:
    """What the answer says was learned; None where nothing was."""
    return Learned(turn.session_id, turn.memory) if turn.memory.learned else None

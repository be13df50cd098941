"""Chat completions as OpenAI's clients speak them: what may come in, and how a turn looks going out.

Neutral values of what this server does not offer are taken; meaningful ones are refused by name. Knows no route.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from engine import (
    InvalidRequest,
    MemoryReport,
    Said,
    Turn,
    TurnCompleted,
    TurnEvent,
    TurnRequest,
    TurnToken,
    Unsupported,
    Usage,
)

READ_ONLY = "-readonly"

# What is taken only where it asks for nothing: the values that do, beside null.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
# The same of a message.
_NEUTRAL_PARTS: dict[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "tool_call_id": (),
    "refusal": ("",),
    "audio": (),
    "annotations": ([],),
}
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ChatMessage(_Body):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: Any = None
    refusal: Any = None
    audio: Any = None
    annotations: Any = None

    def said(self, place: str) -> Said:
        """The same as the engine's noun; `place` is where it stands, for errors."""
        if self.role not in _ROLES:
            raise Unsupported(f"'{place}.role': messages of role '{self.role}' are not offered.", param=place)
        _refuse_meaning(self, _NEUTRAL_PARTS, f"{place}.")
        text = self.content or ""
        if not isinstance(text, str):
            text = "\n".join(_text(part, f"{place}.content") for part in text)
        if self.role == "user" and not text:
            raise InvalidRequest(f"'{place}.content': the message is empty; say something.", param=f"{place}.content")
        return Said(_ROLES[self.role], text)


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatCreate(_Body):
    """`POST /v1/chat/completions`."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1, description="the old name of max_completion_tokens")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: _StopString | Annotated[list[_StopString], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    session_id: str | None = Field(default=None, description="the session; X-Session-ID goes before it")
    metadata: dict[str, Any] | None = Field(default=None, description="`session_id` in it names the session too")
    n: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    # Taken, and without effect.
    user: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    def conversation(self) -> tuple[Said, ...]:
        """The messages as the engine's nouns.

        Raises:
            Unsupported: a message, or another field, asks for what is not offered.
        """
        _refuse_meaning(self, _NEUTRAL, "")
        return tuple(message.said(f"messages.{index}") for index, message in enumerate(self.messages))

    def to_request(self, max_new_tokens: int, *, learn: bool, idempotency_key: str | None) -> TurnRequest:
        """How to answer, the message left out; `max_new_tokens` is this server's own bound."""
        wanted = self.max_completion_tokens or self.max_tokens or max_new_tokens
        if wanted > max_new_tokens:
            name = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
            raise InvalidRequest(f"'{name}': this server speaks at most {max_new_tokens} tokens in a turn.", param=name)
        default = TurnRequest("")
        return TurnRequest(
            message="",
            learn=learn,
            max_tokens=wanted,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            idempotency_key=idempotency_key,
        )


@dataclass(frozen=True)
class ModelObject:
    """A model as `GET /v1/models` shows it."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "hope"


@dataclass(frozen=True)
class ModelList:
    """The models that may be asked."""

    data: list[ModelObject]
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class Reply:
    """The assistant's message."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


@dataclass(frozen=True)
class Choice:
    """The one answer there is."""

    message: Reply
    finish_reason: Literal["stop", "length"]
    index: Literal[0] = 0
    logprobs: None = None


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


def completion(turn: Turn, model: str) -> dict[str, Any]:
    """A turn as a `ChatCompletion`."""
    choice = Choice(Reply(turn.reply), turn.finish_reason)  # type: ignore[arg-type]  # the engine knows these two
    whole = asdict(ChatCompletion(f"chatcmpl-{turn.id}", int(time.time()), model, [choice], turn.usage, _learned(turn)))
    return {name: value for name, value in whole.items() if name != "hope" or value is not None}


class Chunks:
    """The events of one turn as `chat.completion.chunk` objects."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self._model, self._include_usage = model, include_usage
        self._created = int(time.time())

    def __call__(self, event: TurnEvent) -> list[dict[str, Any]]:
        """What is sent of an event."""
        if isinstance(event, TurnCompleted):
            turn = event.turn
            last = self._chunk(turn.id, {}, turn.finish_reason)
            learned = _learned(turn)
            if learned is not None:
                last["hope"] = asdict(learned)
            if not self._include_usage:
                return [last]
            return [last, {**self._chunk(turn.id, {}, None), "choices": [], "usage": asdict(turn.usage)}]
        if isinstance(event, TurnToken):
            return [self._chunk(event.turn_id, {"content": event.text}, None)]
        return [self._chunk(event.turn_id, {"role": "assistant", "content": ""}, None)]

    def _chunk(self, turn_id: str, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": f"chatcmpl-{turn_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }
        return chunk | {"usage": None} if self._include_usage else chunk


def _learned(turn: Turn) -> Learned | None:
    return Learned(turn.session_id, turn.memory) if turn.memory.learned else None


def _refuse_meaning(body: BaseModel, neutral: dict[str, tuple[Any, ...]], place: str) -> None:
    for name, harmless in neutral.items():
        value = getattr(body, name)
        if value is not None and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless
        ):
            raise Unsupported(f"'{place}{name}' is not offered by this server; leave it out.", param=f"{place}{name}")


def _text(part: dict[str, Any], place: str) -> str:
    if part.get("type") != "text":
        raise Unsupported(f"'{place}': only parts of type 'text' are offered.", param=place)
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"'{place}': a part of type 'text' has its words in 'text'.", param=place)
    return str(part["text"])

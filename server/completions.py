"""Chat completions as OpenAI's clients ask for them. Knows no route, and not how a turn looks going out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from engine import InvalidRequest, Said, TurnRequest, Unsupported
from server.offered import ROLES, Body, TopLogprobs, documented, refuse_meaning, text_of
from server.schemas import Positive, Seed

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
_StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ChatMessage(Body):
    """One message of the conversation."""

    model_config = ConfigDict(json_schema_extra=documented(_NEUTRAL_PARTS))

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
        if self.role not in ROLES:
            raise Unsupported(f"'{place}.role': messages of role '{self.role}' are not offered.", param=place)
        refuse_meaning(self, _NEUTRAL_PARTS, f"{place}.")
        text = text_of(self.content, ("text",), f"{place}.content")
        if self.role == "user" and not text:
            raise InvalidRequest(f"'{place}.content': the message is empty; say something.", param=f"{place}.content")
        return Said(ROLES[self.role], text)


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatCreate(Body):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(json_schema_extra=documented(_NEUTRAL))

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = Field(default=None, description="the old name of max_completion_tokens")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: Seed | None = None
    stop: _StopString | Annotated[list[_StopString], Field(max_length=4)] | None = None
    logprobs: bool | None = Field(default=None, description="tell of each token how likely it was")
    top_logprobs: TopLogprobs | None = Field(default=None, description="and of so many others")
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
        refuse_meaning(self, _NEUTRAL)
        return tuple(message.said(f"messages.{index}") for index, message in enumerate(self.messages))

    def names(self) -> tuple[tuple[str, Any], ...]:
        """The fields that may name the session, in their order; never `user`."""
        return ("session_id", self.session_id), ("metadata.session_id", (self.metadata or {}).get("session_id"))

    def to_request(self, max_new_tokens: int, *, learn: bool, idempotency_key: str | None) -> TurnRequest:
        """How to answer, the message left out; `max_new_tokens` is this server's own bound."""
        wanted = self.max_completion_tokens or self.max_tokens or max_new_tokens
        if wanted > max_new_tokens:
            name = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
            raise InvalidRequest(f"'{name}': this server speaks at most {max_new_tokens} tokens in a turn.", param=name)
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs': it needs 'logprobs': true beside it.", param="top_logprobs")
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
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
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

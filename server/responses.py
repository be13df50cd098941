"""OpenAI's responses as its clients ask for them. Knows no route, and not how a turn looks going out."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from engine import InvalidRequest, NotFound, Said, TurnRequest, Unsupported
from server.offered import ROLES, Body, TopLogprobs, documented, refuse_meaning, text_of
from server.schemas import Metadata, Positive

INCLUDE_LOGPROBS = "message.output_text.logprobs"

# What is taken only where it asks for nothing: the values that do, beside null.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "prompt": (),
    "moderation": (),
    "access_programs": (),
    "image": (),
}
_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{24})_([A-Za-z0-9_\-]{1,64})")
_TURN = "turn-"
_PARTS = ("input_text", "output_text", "text")
_ITEM_FIELDS = {"id", "status", "phase"}


class InputItem(BaseModel):
    """A message of `input`; items of other kinds are refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str | None = None
    role: str | None = None
    content: str | list[dict[str, Any]] | None = None

    def said(self, place: str) -> Said:
        """The same as the engine's noun; `place` is where it stands, for errors."""
        if self.type not in (None, "message"):
            raise Unsupported(f"'{place}.type': only items of type 'message' are offered.", param=f"{place}.type")
        unknown = sorted(set(self.model_extra or ()) - _ITEM_FIELDS)
        if unknown:
            name = f"{place}.{unknown[0]}"
            raise InvalidRequest(f"Unknown field '{name}'; leave it out or correct its name.", param=name)
        if self.role not in ROLES:
            raise InvalidRequest(f"'{place}.role': it is one of {', '.join(ROLES)}.", param=f"{place}.role")
        text = text_of(self.content, _PARTS, f"{place}.content")
        if self.role == "user" and not text:
            raise InvalidRequest(f"'{place}.content': the message is empty; say something.", param=f"{place}.content")
        return Said(ROLES[self.role], text)


def _name_of(value: Any) -> Any:
    return value["id"] if isinstance(value, dict) and set(value) == {"id"} else value


class ResponseCreate(Body):
    """`POST /v1/responses`."""

    model_config = ConfigDict(json_schema_extra=documented(_NEUTRAL))

    model: str
    input: Annotated[str, StringConstraints(min_length=1)] | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = Field(default=None, description="a system message before the input")
    conversation: Annotated[
        str | None, BeforeValidator(_name_of), Field(description="the session, or an object with its id; made if new")
    ] = None
    previous_response_id: str | None = Field(default=None, description="goes on after it; what came later is undone")
    max_output_tokens: Positive | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = Field(default=None, description=f"'{INCLUDE_LOGPROBS}'; the rest is never there")
    store: bool | None = Field(default=None, description="false: nothing is learned or kept")
    stream: bool | None = None
    metadata: Metadata | None = Field(default=None, description="`session_id` in it names the session too")
    text: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    background: Any = None
    background_options: Any = None
    context_management: Any = None
    prompt: Any = None
    moderation: Any = None
    access_programs: Any = None
    image: Any = None
    # Taken, and without effect.
    stream_options: Any = None
    max_tool_calls: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    truncation: Any = None
    user: Any = None

    def names(self) -> tuple[tuple[str, Any], ...]:
        """The fields that may name the session, in their order; never `user`."""
        return ("conversation", self.conversation), ("metadata.session_id", (self.metadata or {}).get("session_id"))

    def messages(self) -> tuple[Said, ...]:
        """Instructions and input as the engine's nouns.

        Raises:
            Unsupported: an item, or another field, asks for what is not offered.
            InvalidRequest: there is nothing to answer.
        """
        refuse_meaning(self, _NEUTRAL)
        if ((self.text or {}).get("format") or {"type": "text"}) != {"type": "text"}:
            raise Unsupported('\'text.format\': only {"type": "text"} is offered; leave it out.', param="text.format")
        before = (Said("system", self.instructions),) if self.instructions else ()
        if isinstance(self.input, str):
            return *before, Said("user", self.input)
        said = tuple(item.said(f"input.{index}") for index, item in enumerate(self.input))
        if said[-1].role != "user":
            raise InvalidRequest("'input': the last message must be the user's; there is nothing new.", param="input")
        return *before, *said

    def to_request(self, max_new_tokens: int, *, learn: bool, idempotency_key: str | None) -> TurnRequest:
        """How to answer, the message left out; `max_new_tokens` is this server's own bound."""
        if (self.max_output_tokens or 0) > max_new_tokens:
            raise InvalidRequest(
                f"'max_output_tokens': this server speaks at most {max_new_tokens} tokens in a turn.",
                param="max_output_tokens",
            )
        default = TurnRequest("")
        included = INCLUDE_LOGPROBS in (self.include or ())
        return TurnRequest(
            message="",
            learn=learn and self.store is not False,
            max_tokens=self.max_output_tokens or max_new_tokens,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            idempotency_key=idempotency_key,
            top_logprobs=self.top_logprobs or (0 if included else None),
        )


class ResponseCreateFrame(ResponseCreate):
    """A websocket client's `response.create`; `stream` is implied there."""

    type: Literal["response.create"]
    stream_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.\-]{1,256}$")
    generate: Literal[True] | None = None


def response_id(turn_id: str, session_id: str | None) -> str:
    """The id of the response that a turn is; of one that is kept it tells the session too."""
    name = f"resp_{turn_id.removeprefix(_TURN)}"
    return f"{name}_{session_id}" if session_id else name


def turn_of(name: str, param: str) -> tuple[str, str]:
    """The session's id and the turn's that a response's id stands for; NotFound where it stands for none."""
    found = _RESPONSE_ID.fullmatch(name)
    if found is None:
        raise no_response(param)
    return found.group(2), _TURN + found.group(1)


def no_response(param: str) -> NotFound:
    """There is no such response, for this caller."""
    return NotFound("There is no such response: it was not stored, or was undone or deleted.", param=param)

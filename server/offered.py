"""What of OpenAI's requests is offered: text, and neutral values of everything else; the rest is refused by name.

Shared by chat completions and responses; knows neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers

from engine import InvalidRequest, Unsupported
from server.schemas import SESSION_ID, WHOLE

# The model's name with this ending answers and learns nothing.
READ_ONLY = "-readonly"
# How many likeliest tokens may be asked for beside each one said.
MAX_TOP_LOGPROBS = 5
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE]
# A client's roles, and what the engine calls them.
ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}

SESSION_HEADER = "X-Session-ID"
# Chat front ends name their conversations in headers of their own; a hidden prompt for a title names its task.
ALIASES = ("X-OpenWebUI-Chat-Id", "X-Conversation-Id", "X-Chat-Id")
TASK_HEADER = "X-OpenWebUI-Task"

# The header that names the session, as the reference shows it.
SESSION_PARAMETER = {
    "parameters": [
        {
            "name": SESSION_HEADER,
            "in": "header",
            "required": False,
            "schema": {"type": "string", "pattern": SESSION_ID},
            "description": "the session, made where it is new; other places that may name it are in the manual",
        }
    ]
}

_SESSION_ID = re.compile(SESSION_ID)


class Body(BaseModel):
    """Strict: "3" is no number. Closed: a field that is not named is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def documented(neutral: Mapping[str, tuple[Any, ...]]) -> Callable[[dict[str, Any]], None]:
    """A body's `json_schema_extra` that says what these fields may hold: null, or a neutral value."""

    def document(schema: dict[str, Any]) -> None:
        for name, harmless in neutral.items():
            schema["properties"][name]["enum"] = [None, *harmless]

    return document


def refuse_meaning(body: BaseModel, neutral: dict[str, tuple[Any, ...]], place: str = "") -> None:
    """Takes these fields where they ask for nothing: where they are null, or one of their neutral values.

    Raises:
        Unsupported: one asks for something; `place` stands before its name.
    """
    for name, harmless in neutral.items():
        value = getattr(body, name)
        if value is not None and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless
        ):
            raise Unsupported(f"'{place}{name}' is not offered by this server; leave it out.", param=f"{place}{name}")


def text_of(content: str | list[dict[str, Any]] | None, kinds: tuple[str, ...], place: str) -> str:
    """The words of a message, which may come in parts of these kinds.

    Raises:
        Unsupported: a part of another kind.
        InvalidRequest: a part without words, or with half a character (pydantic sees to that elsewhere).
    """
    if isinstance(content, str):
        return content
    for part in content or ():
        if part.get("type") not in kinds:
            raise Unsupported(f"'{place}': only parts of type '{kinds[0]}' are offered.", param=place)
        text = part.get("text")
        if not isinstance(text, str):
            raise InvalidRequest(f"'{place}': a part of type '{kinds[0]}' has its words in 'text'.", param=place)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidRequest(f"'{place}': the text holds half a character; send whole ones.", param=place)
    return "\n".join(part["text"] for part in content or ())


def session_named(headers: Headers, fields: Iterable[tuple[str, Any]]) -> str | None:
    """The session's id from the first place that names one: the header, a field of the body, a front end's header.

    Args:
        headers: of the request.
        fields: of the body, with their names, in their order.
    """
    aliases = ((name, headers.get(name)) for name in ALIASES)
    for place, value in ((SESSION_HEADER, headers.get(SESSION_HEADER)), *fields, *aliases):
        if value is None or value == "":
            continue
        if not isinstance(value, str) or not _SESSION_ID.fullmatch(value):
            raise InvalidRequest(f"'{place}': a session's id is 1 to 64 letters, digits, '_' and '-'.", param=place)
        return value
    return None


def may_learn(headers: Headers, model: str) -> bool:
    """Whether the request is one to learn from: no hidden prompt of a front end, and not to the read-only model."""
    return not model.endswith(READ_ONLY) and not headers.get(TASK_HEADER)

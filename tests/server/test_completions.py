"""What a chat completion may ask for: neutral values are taken, and what is not offered is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from tests.server.chatting import CHAT, FIXED, ask, session, transcript, user

if TYPE_CHECKING:
    from tests.server.running import Running

NEUTRAL: dict[str, Any] = {
    "tools": [], "tool_choice": "none", "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {},
    "logprobs": False, "top_logprobs": 0,
    "response_format": {"type": "text"}, "user": "u", "store": True, "parallel_tool_calls": False,
    "service_tier": "auto", "reasoning_effort": "low", "stop": None, "seed": None, "modalities": ["text"],
}  # fmt: skip


async def test_neutral_values_are_taken(client: AsyncOpenAI) -> None:
    assert (await ask(client, [user("Hello.")], **NEUTRAL)).choices[0].message.content is not None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported", "tools"),
    ({"n": 2}, "unsupported", "n"),
    ({"n": True}, "unsupported", "n"),
    ({"presence_penalty": 0.5}, "unsupported", "presence_penalty"),
    ({"logprobs": 1}, "invalid_request", "logprobs"),
    ({"logprobs": True, "top_logprobs": 6}, "invalid_request", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "invalid_request", "top_logprobs"),
    ({"top_logprobs": 2}, "invalid_request", "top_logprobs"),
    ({"response_format": {"type": "json_object"}}, "unsupported", "response_format"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "unsupported", "messages.0"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "unsupported",
        "messages.0.content",
    ),
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": [user("")]}, "invalid_request", "messages.0.content"),
    ({"messages": [user("a"), {"role": "assistant", "content": "b"}]}, "invalid_request", "messages"),
    ({"messages": [{"role": "system", "content": "b"}]}, "invalid_request", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_request", "messages.0.content"),
    ({"max_tokens": 0}, "invalid_request", "max_tokens"),
    ({"max_completion_tokens": 10**6}, "invalid_request", "max_completion_tokens"),
    ({"temperature": 3}, "invalid_request", "temperature"),
    ({"stop": ["a"] * 5}, "invalid_request", "stop"),
    ({"session_id": "a b"}, "invalid_request", "session_id"),
    ({"metadata": {"session_id": 7}}, "invalid_request", "metadata.session_id"),
    ({"colour": "blue"}, "invalid_request", "colour"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_offered_or_wrong_is_400_and_named(live: Running, stream: bool) -> None:
    for body, code, param in REFUSED:
        asked = {"model": "hope", "messages": [user("Hello.")], **FIXED}
        asked |= {"session_id": None if "metadata" in body else "s", **body, "stream": stream}
        answer = await live.http.post(CHAT, json=asked)
        assert answer.status_code == 400, (body, answer.text)
        error = answer.json()["error"]
        assert (error["code"], error["param"].startswith(param)) == (code, True), (body, error)
        assert "error" in await session(live, "s"), (body, "nothing was made of it")


async def test_parts_of_text_are_read_together(live: Running, client: AsyncOpenAI) -> None:
    parts = [{"type": "text", "text": "Hello."}, {"type": "text", "text": "It is me."}]
    await ask(client, [{"role": "user", "content": parts}], "s")
    assert (await transcript(live, "s"))[0]["message"] == "Hello.\nIt is me."


async def test_half_a_character_is_400(live: Running) -> None:
    body = b'{"model": "hope", "messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]}'
    answer = await live.http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages.0.content")

"""What a response may ask for: neutral values are taken, and what is not offered is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from engine import NotFound
from server.responses import response_id, turn_of
from tests.server.chatting import session, transcript
from tests.server.responding import FIXED, RESPONSES, respond

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from tests.server.running import Running

NEUTRAL: dict[str, Any] = {
    "tools": [], "tool_choice": "auto", "background": False, "text": {"format": {"type": "text"}, "verbosity": "low"},
    "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"], "truncation": "auto", "user": "u",
    "service_tier": "auto", "parallel_tool_calls": True, "max_tool_calls": 3, "prompt_cache_key": "k", "store": True,
    "safety_identifier": "x", "stream_options": {"include_obfuscation": False}, "top_logprobs": 0,
}  # fmt: skip


async def test_neutral_values_are_taken(client: AsyncOpenAI) -> None:
    assert (await respond(client, "Hello.", **NEUTRAL)).output_text is not None


IMAGE = {"type": "input_image", "image_url": "x"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "web_search"}]}, "unsupported", "tools"),
    ({"tool_choice": "required"}, "unsupported", "tool_choice"),
    ({"background": True}, "unsupported", "background"),
    ({"prompt": {"id": "p"}}, "unsupported", "prompt"),
    ({"text": {"format": {"type": "json_object"}}}, "unsupported", "text.format"),
    ({"context_management": [{"type": "compaction"}]}, "unsupported", "context_management"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]}, "unsupported", "input.0.type"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "unsupported", "input.0.type"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "unsupported", "input.0.content"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "invalid_request", "input.0.content"),
    ({"input": [{"role": "user", "content": ""}]}, "invalid_request", "input.0.content"),
    ({"input": [{"role": "king", "content": "a"}]}, "invalid_request", "input.0.role"),
    ({"input": [{"role": "user", "content": "a", "loud": True}]}, "invalid_request", "input.0.loud"),
    ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "invalid_request", "input"),
    ({"input": ""}, "invalid_request", "input"),
    ({"input": []}, "invalid_request", "input"),
    ({"input": 7}, "invalid_request", "input"),
    ({"max_output_tokens": 0}, "invalid_request", "max_output_tokens"),
    ({"max_output_tokens": 10**6}, "invalid_request", "max_output_tokens"),
    ({"temperature": 3}, "invalid_request", "temperature"),
    ({"top_p": 0}, "invalid_request", "top_p"),
    ({"top_logprobs": 6}, "invalid_request", "top_logprobs"),
    ({"metadata": {"a": 1}}, "invalid_request", "metadata"),
    ({"conversation": "a b"}, "invalid_request", "conversation"),
    ({"conversation": {"name": "s"}}, "invalid_request", "conversation"),
    ({"previous_response_id": f"resp_{'0' * 24}_s"}, "invalid_request", "conversation"),
    ({"colour": "blue"}, "invalid_request", "colour"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_offered_or_wrong_is_400_and_named(live: Running, stream: bool) -> None:
    for body, code, param in REFUSED:
        asked = {"input": "Hello.", "conversation": "s", **FIXED, **body, "stream": stream}
        answer = await live.http.post(RESPONSES, json=asked)
        assert answer.status_code == 400, (body, answer.text)
        error = answer.json()["error"]
        named = error["param"] if param != "metadata" else error["param"].partition(".")[0]
        assert (error["code"], named) == (code, param), (body, error)
        assert "error" in await session(live, "s"), (body, "nothing was made of it")


async def test_ids_that_stand_for_nothing_are_404(live: Running, client: AsyncOpenAI) -> None:
    for name in ("resp_x", "chatcmpl-1", f"resp_{'0' * 24}", f"resp_{'0' * 24}_s", "x" * 3000):
        for attempt in (client.responses.retrieve(name), client.responses.delete(name)):
            with pytest.raises(openai.NotFoundError):
                await attempt
        with pytest.raises(openai.NotFoundError) as refused:
            await respond(client, "Hello.", previous_response_id=name)
        assert refused.value.param == "previous_response_id"
    assert (await live.http.get("/v1/sessions")).json()["data"] == []


async def test_a_response_of_another_session_than_the_named_is_refused(live: Running, client: AsyncOpenAI) -> None:
    made = await respond(client, "Hello.", conversation="s")
    with pytest.raises(openai.BadRequestError) as refused:
        await respond(client, "x", previous_response_id=made.id, extra_headers={"X-Session-ID": "t"})
    assert refused.value.param == "previous_response_id"
    await respond(client, "x", previous_response_id=made.id, extra_headers={"X-Session-ID": "s"})
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.retrieve(made.id, extra_query={"stream": "true"})
    assert (refused.value.code, refused.value.param) == ("unsupported", "stream")


async def test_parts_of_text_are_read_together(live: Running, client: AsyncOpenAI) -> None:
    parts = [{"type": "input_text", "text": "Hello."}, {"type": "input_text", "text": "It is me."}]
    await respond(client, [{"role": "user", "content": parts}], conversation="s")
    assert (await transcript(live, "s"))[0]["message"] == "Hello.\nIt is me."


async def test_logprobs_are_told_where_they_are_included(client: AsyncOpenAI) -> None:
    assert not (await respond(client, "Hello.")).output[0].content[0].logprobs
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "store": False}
    whole = await respond(client, "Hello.", **asked)
    (text,) = whole.output[0].content
    assert b"".join(bytes(one.bytes) for one in text.logprobs).decode(errors="replace") == text.text
    assert [len(one.top_logprobs) for one in text.logprobs] == [2] * 5
    events = [event async for event in await respond(client, "Hello.", **asked, stream=True)]
    told = [one for event in events if event.type.endswith("delta") for one in event.logprobs]
    assert [one.logprob for one in told] == [one.logprob for one in text.logprobs]
    assert events[-1].response.output[0].content[0].logprobs == text.logprobs


def test_an_id_tells_where_a_response_is_kept() -> None:
    turn_id = "turn-" + "0a" * 12
    assert turn_of(response_id(turn_id, "my_chat-1"), "x") == ("my_chat-1", turn_id)
    for name in (response_id(turn_id, None), response_id(turn_id, "a b"), "", response_id(turn_id, "s") + "\n"):
        with pytest.raises(NotFound):
            turn_of(name, "x")

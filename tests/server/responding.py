"""Talking to a server as openai's client does with responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.server.chatting import transcript

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from tests.server.running import Running

RESPONSES = "/v1/responses"
FIXED: dict[str, Any] = {"model": "hope", "temperature": 0, "max_output_tokens": 5}
# What a streamed response sends around its deltas.
BEFORE = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
AFTER = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
DELTA = "response.output_text.delta"
ENDS = ("response.completed", "response.incomplete")


async def respond(client: AsyncOpenAI, words: Any, **fields: Any) -> Any:
    return await client.responses.create(input=words, **{**FIXED, **fields})


async def follow(client: AsyncOpenAI, num_responses: int, conversation: str = "s") -> list[Any]:
    """So many responses, each following the one before."""
    made = [await respond(client, "This is number 0.", conversation=conversation)]
    for number in range(1, num_responses):
        made.append(await respond(client, f"This is number {number}.", previous_response_id=made[-1].id))
    return made


async def said(live: Running, session_id: str) -> list[str]:
    """What the session was told."""
    return [turn["message"] for turn in await transcript(live, session_id)]


def check_events(events: list[Any], turn: dict[str, Any]) -> None:
    """That these are the official client's events of a response, in their order, and of this turn."""
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == DELTA]
    assert kinds == [*BEFORE, *[DELTA] * len(deltas), *AFTER, kinds[-1]]
    assert kinds[-1] in ENDS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    first, last = events[0].response, events[-1].response
    assert (first.status, first.output, first.usage, first.id) == ("in_progress", [], None, last.id)
    assert "".join(event.delta for event in deltas) == last.output_text == turn["reply"]
    done, part, item = events[-4:-1]
    assert (done.text, part.part.text) == (turn["reply"], turn["reply"])
    assert item.item == last.output[0]
    assert {event.item_id for event in [*deltas, done, part]} == {last.output[0].id}
    assert last.usage.total_tokens == turn["usage"]["total_tokens"]

"""Responses with the clients people use: openai's own and LangChain's, against a real server."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI

from tests.server.chatting import ask, session, transcript, user
from tests.server.responding import BEFORE, DELTA, FIXED, RESPONSES, check_events, follow, respond, said

if TYPE_CHECKING:
    from tests.server.running import Running


async def test_a_response_is_as_the_client_expects_it(live: Running, client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"conversation": {"id": "s"}, "metadata": {"a": "b"}, "instructions": "Be kind."}
    made = await respond(client, "Hello.", **asked)
    turn = (await transcript(live, "s"))[0]
    assert made.id.startswith("resp_")
    assert (made.object, made.model, made.error) == ("response", "hope", None)
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert made.output_text == turn["reply"]
    (message,) = made.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert (made.usage.input_tokens, made.usage.output_tokens) == (
        turn["usage"]["prompt_tokens"],
        turn["usage"]["completion_tokens"],
    )
    assert (made.conversation.id, made.metadata, made.instructions) == ("s", {"a": "b"}, "Be kind.")
    assert made.model_dump()["hope"] == {"session_id": "s", "memory": turn["memory"]}
    kept = await client.responses.retrieve(made.id)
    assert (kept.id, kept.output, kept.usage, kept.status) == (made.id, made.output, made.usage, made.status)
    assert kept.conversation == made.conversation


async def test_a_stream_is_as_the_client_expects_it(live: Running, client: AsyncOpenAI) -> None:
    events = [event async for event in await respond(client, "Hello.", conversation="s", stream=True)]
    turn = (await transcript(live, "s"))[0]
    check_events(events, turn)
    last = events[-1].response
    assert last.model_dump()["hope"]["memory"] == turn["memory"]
    assert (await client.responses.retrieve(last.id)).output == last.output
    # And with the helper that gathers the events.
    async with client.responses.stream(input="And now?", previous_response_id=last.id, **FIXED) as stream:
        gathered: list[Any] = [event async for event in stream]
    assert ([event.type for event in gathered][:4], gathered[-1].type) == (BEFORE, "response.incomplete")
    snapshots = [event.snapshot for event in gathered if event.type == DELTA]
    assert snapshots[-1] == (await transcript(live, "s"))[1]["reply"]


async def test_the_stream_on_the_wire(live: Running) -> None:
    answer = await live.http.post(RESPONSES, json={"input": "Hello.", "stream": True, **FIXED})
    assert answer.headers["content-type"].startswith("text/event-stream")
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
    assert "[DONE]" not in answer.text
    assert answer.headers["x-session-id"]


async def test_each_message_is_learned_once_and_as_by_chat_completions(live: Running, client: AsyncOpenAI) -> None:
    made = await follow(client, 4)
    assert await said(live, "s") == [f"This is number {number}." for number in range(4)]
    assert (await session(live, "s"))["version"] == 4
    history: list[Any] = []
    for number in range(4):
        history.append(user(f"This is number {number}."))
        history.append((await ask(client, history, "t")).choices[0].message.model_dump())
    assert [message["content"] for message in history[1::2]] == [one.output_text for one in made]
    one, two = await transcript(live, "s"), await transcript(live, "t")
    assert one[-1]["memory"] == two[-1]["memory"]
    assert (await client.responses.retrieve(made[2].id)).previous_response_id == made[1].id


async def test_a_response_made_again_or_edited_undoes_what_came_after(live: Running, client: AsyncOpenAI) -> None:
    made = await follow(client, 4)
    before = await transcript(live, "s")
    again = await respond(client, "This is number 3.", previous_response_id=made[2].id)
    assert (again.output_text, again.id == made[3].id) == (made[3].output_text, False)
    assert again.model_dump()["hope"]["memory"] == {**before[3]["memory"], "version": 5}
    edited = await respond(client, "Something else.", previous_response_id=made[0].id)
    assert await said(live, "s") == ["This is number 0.", "Something else."]
    for gone in (made[1], made[3], again):
        with pytest.raises(openai.NotFoundError) as refused:
            await respond(client, "Go on.", previous_response_id=gone.id)
        assert (refused.value.code, refused.value.param) == ("not_found", "previous_response_id")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(gone.id)
    # Just as a session that never heard the rest.
    other = await follow(client, 1, "t")
    same = await respond(client, "Something else.", previous_response_id=other[0].id)
    assert same.model_dump()["hope"]["memory"]["levels"] == edited.model_dump()["hope"]["memory"]["levels"]


async def test_further_back_than_versions_are_kept_is_409(live: Running, client: AsyncOpenAI) -> None:
    made = await follow(client, 10)
    with pytest.raises(openai.ConflictError, match="are kept") as refused:
        await respond(client, "Back here.", previous_response_id=made[0].id)
    assert refused.value.param == "input"
    assert (await session(live, "s"))["num_turns"] == 10


async def test_a_history_that_is_sent_again_is_known(live: Running, client: AsyncOpenAI) -> None:
    made = await follow(client, 2)
    history: list[Any] = []
    for number, one in enumerate(made):
        history += [{"role": "user", "content": f"This is number {number}."}, one.output[0].model_dump()]
    new = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
    await respond(client, [*history, new], conversation="s")
    assert await said(live, "s") == ["This is number 0.", "This is number 1.", "Hello."]
    history[1] = {"role": "assistant", "content": "I never said this."}
    with pytest.raises(openai.ConflictError) as refused:
        await respond(client, [*history[:3], new], conversation="s")
    assert refused.value.param == "input"


async def test_without_a_conversation_one_begins_and_it_can_be_followed(live: Running, client: AsyncOpenAI) -> None:
    first, other = await respond(client, "Hello."), await respond(client, "Hello.")
    assert first.conversation.id != other.conversation.id
    second = await respond(client, "And now?", previous_response_id=first.id)
    assert second.conversation == first.conversation
    assert await said(live, first.conversation.id) == ["Hello.", "And now?"]
    # A repeat with its key finds what was stored.
    headers = {"Idempotency-Key": "k"}
    once, twice = [await respond(client, "Once.", extra_headers=headers) for _ in range(2)]
    assert (once.id, once.output) == (twice.id, twice.output)
    assert len((await live.http.get("/v1/sessions")).json()["data"]) == 3


@pytest.mark.parametrize("how", [{"store": False}, {"model": "hope-readonly"}])
@pytest.mark.parametrize("exists", [True, False])
async def test_what_is_not_stored_leaves_no_trace(
    live: Running, client: AsyncOpenAI, how: dict[str, Any], exists: bool
) -> None:
    where: dict[str, Any] = {"previous_response_id": (await follow(client, 2))[0].id} if exists else {}
    before = (await live.http.get("/v1/sessions")).json()
    made = await respond(client, "Hello.", **how, **where)
    assert (made.store, "hope" in made.model_dump()) == (False, False)
    assert (await live.http.get("/v1/sessions")).json() == before
    for attempt in (client.responses.retrieve(made.id), respond(client, "x", previous_response_id=made.id)):
        with pytest.raises(openai.NotFoundError):
            await attempt


async def test_instructions_are_read_where_they_are_new(client: AsyncOpenAI) -> None:
    kind = {"instructions": "You are kind to everybody."}
    made = await respond(client, "Hello.", **kind)
    sizes = []
    for instructions in (kind, kind, {"instructions": "You are brief with everybody."}, {}):
        made = await respond(client, "Hello.", previous_response_id=made.id, **instructions)
        sizes.append(made.usage.input_tokens)
    assert sizes[0] == sizes[1] == sizes[3] < sizes[2] - 2


async def test_the_last_response_can_be_taken_back(live: Running, client: AsyncOpenAI) -> None:
    made = await follow(client, 3)
    with pytest.raises(openai.ConflictError) as refused:
        await client.responses.delete(made[1].id)
    assert refused.value.param == "response_id"
    await client.responses.delete(made[2].id)
    assert await said(live, "s") == ["This is number 0.", "This is number 1."]
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(made[2].id)
    again = await respond(client, "This is number 2.", previous_response_id=made[1].id)
    assert again.output_text == made[2].output_text


async def test_a_failure_in_the_middle_reaches_the_client(live: Running, client: AsyncOpenAI) -> None:
    stream = await respond(client, "Hello.", conversation="s", stream=True, max_output_tokens=150)
    with pytest.raises(openai.APIError) as failed:
        await _read_but_delete(stream, live)
    assert failed.value.code == "lease_lost"


async def _read_but_delete(stream: Any, live: Running) -> None:
    """Reads to the end; after the first words the session is deleted by somebody else."""
    deleted = False
    async for event in stream:
        if not deleted and event.type.endswith("delta"):
            deleted = (await live.http.delete("/v1/sessions/s")).status_code == 200


async def test_a_client_that_leaves_a_stream_has_taught_nothing(live: Running, client: AsyncOpenAI) -> None:
    made = await follow(client, 1)
    stream = await respond(client, "Tell me.", previous_response_id=made[0].id, stream=True, max_output_tokens=1024)
    async for _ in stream:
        break
    await stream.close()
    await respond(client, "Hello?", previous_response_id=made[0].id)
    assert await said(live, "s") == ["This is number 0.", "Hello?"]


async def test_the_client_that_waits_talks_to_it_too(live: Running) -> None:
    def talk() -> list[str]:
        with OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0) as waiting:
            first = waiting.responses.create(input="Hello.", conversation="s", **FIXED)
            events = list(waiting.responses.create(input="Go on.", previous_response_id=first.id, stream=True, **FIXED))
            assert events[-1].type == "response.incomplete"
            kept = waiting.responses.retrieve(events[-1].response.id)
            return [first.output_text, kept.output_text]

    replies = await asyncio.to_thread(talk)
    assert [turn["reply"] for turn in await transcript(live, "s")] == replies


@pytest.mark.parametrize("by_id", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
async def test_langchain_talks_to_it(live: Running, streaming: bool, by_id: bool) -> None:
    model = ChatOpenAI(
        model="hope",
        base_url=f"http://127.0.0.1:{live.port}/v1",
        api_key="none",  # type: ignore[arg-type]  # it takes a string too
        temperature=0,
        max_tokens=5,  # type: ignore[call-arg]  # an alias its stubs do not know
        streaming=streaming,
        use_responses_api=True,
        use_previous_response_id=by_id,
        default_headers={"X-Session-ID": "s"},
    )
    history: list[Any] = [SystemMessage("You are kind.")]
    for number in range(3):
        history.append(HumanMessage(f"This is number {number}."))
        answer = await model.ainvoke(history)
        assert isinstance(answer, AIMessage)
        assert answer.usage_metadata is not None
        history.append(answer)
    turns = await transcript(live, "s")
    assert [turn["message"] for turn in turns] == [f"This is number {number}." for number in range(3)]
    assert [turn["reply"] for turn in turns] == [one.text for one in history if isinstance(one, AIMessage)]
    assert (await session(live, "s"))["version"] == 3

"""Chat completions with the clients people use: openai's own and LangChain's, against a real server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI

from tests.server.chatting import CHAT, FIXED, ask, session, talk, transcript, user

if TYPE_CHECKING:
    from tests.server.running import Running


async def test_a_chat_that_sends_its_history_again_learns_each_message_once(live: Running, client: AsyncOpenAI) -> None:
    history = await talk(client, "s", 20)
    turns = await transcript(live, "s")
    assert [turn["message"] for turn in turns] == [f"This is number {number}." for number in range(20)]
    assert [turn["reply"] for turn in turns] == [message["content"] for message in history[1::2]]
    now = await session(live, "s")
    assert (now["version"], now["num_turns"]) == (20, 20)
    # The same as told turn by turn to the session itself, to the last number.
    await live.new_session("t")
    for number in range(20):
        body = {"message": f"This is number {number}.", **FIXED}
        turn = (await live.http.post("/v1/sessions/t/turns", json=body)).json()
        assert (turn["reply"], turn["usage"]) == (turns[number]["reply"], turns[number]["usage"])
    assert turn["memory"] == turns[-1]["memory"]


async def test_the_answer_is_as_the_client_expects_it(live: Running, client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="hope",
        messages=[user("Hello.")],  # type: ignore[list-item]
        extra_headers={"X-Session-ID": "s"},
        **FIXED,
    )
    answer = raw.parse()
    assert raw.headers["x-session-id"] == "s"
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "hope")
    (choice,) = answer.choices
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.finish_reason in ("stop", "length")
    turn = (await transcript(live, "s"))[0]
    assert choice.message.content == turn["reply"]
    assert answer.usage is not None
    assert answer.usage.model_dump(include=set(turn["usage"])) == turn["usage"]
    assert answer.model_dump()["hope"] == {"session_id": "s", "memory": turn["memory"]}


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_is_as_the_client_expects_it(live: Running, client: AsyncOpenAI, include_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = [chunk async for chunk in await ask(client, [user("Hello.")], "s", stream=True, **options)]
    turn = (await transcript(live, "s"))[0]
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage.model_dump(include=set(turn["usage"])) == turn["usage"]
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == turn["reply"]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == turn["finish_reason"]
    assert chunks[-1].model_dump()["hope"]["memory"] == turn["memory"]
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{turn['id']}"}


async def test_the_stream_on_the_wire(live: Running) -> None:
    body = {"model": "hope", "messages": [user("Hello.")], "stream": True, **FIXED}
    answer = await live.http.post(CHAT, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        assert "usage" not in json.loads(line.removeprefix("data: "))


async def test_a_regenerated_turn_is_learned_in_place_of_the_first(live: Running, client: AsyncOpenAI) -> None:
    history = await talk(client, "s", 4)
    before = await transcript(live, "s")
    again = await ask(client, history[:-1], "s")
    after = await transcript(live, "s")
    assert len(after) == 4
    assert [turn["id"] for turn in after[:3]] == [turn["id"] for turn in before[:3]]
    assert after[3]["id"] != before[3]["id"]
    # At temperature 0 it is the same again, and so is what was learned: it stood on the memory of then.
    assert again.choices[0].message.content == before[3]["reply"]
    assert after[3]["memory"] == {**before[3]["memory"], "version": 5}
    assert (await session(live, "s"))["num_turns"] == 4


async def test_an_edited_turn_undoes_what_came_after_it(live: Running, client: AsyncOpenAI) -> None:
    history = await talk(client, "s", 4)
    await ask(client, [*history[:4], user("Something else.")], "s")
    turns = await transcript(live, "s")
    assert [turn["message"] for turn in turns] == ["This is number 0.", "This is number 1.", "Something else."]
    # Just as a session that never heard the rest.
    other = await talk(client, "t", 2)
    await ask(client, [*other, user("Something else.")], "t")
    assert (await transcript(live, "t"))[-1]["memory"]["levels"] == turns[-1]["memory"]["levels"]


async def test_the_first_turn_again_is_a_retry_and_another_one_alone_goes_on(
    live: Running, client: AsyncOpenAI
) -> None:
    for _ in range(2):
        await ask(client, [user("Hello.")], "s")
        assert [turn["message"] for turn in await transcript(live, "s")] == ["Hello."]
    await ask(client, [user("I am here.")], "s")
    assert [turn["message"] for turn in await transcript(live, "s")] == ["Hello.", "I am here."]
    await ask(client, [user("Hello.")], "s")
    assert (await session(live, "s"))["num_turns"] == 3, "who sends no history may say a thing twice"


@pytest.mark.parametrize("place", [1, 3])
async def test_a_conversation_that_contradicts_the_transcript_is_409(
    live: Running, client: AsyncOpenAI, place: int
) -> None:
    history = await talk(client, "s", 3)
    history[place] = {"role": "assistant", "content": "I never said this."}
    before = await session(live, "s")
    with pytest.raises(openai.ConflictError) as refused:
        await ask(client, [*history, user("And now?")], "s")
    assert (refused.value.code, refused.value.param) == ("conflict", "messages")
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert await session(live, "s") == before


async def test_what_another_assistant_said_after_the_end_is_read_as_new(live: Running, client: AsyncOpenAI) -> None:
    """A stopped stream leaves the client with a reply that was never learned."""
    history = await talk(client, "s", 2)
    partial = [user("Tell me."), {"role": "assistant", "content": "Once upon"}]
    await ask(client, [*history, *partial, user("Go on.")], "s")
    turns = await transcript(live, "s")
    assert [turn["message"] for turn in turns][2:] == ["Go on."]
    short = await ask(client, [user("Go on.")])
    assert turns[2]["usage"]["prompt_tokens"] > short.usage.prompt_tokens + 5
    # And is known from then on.
    more = [*history, *partial, user("Go on."), {"role": "assistant", "content": turns[2]["reply"]}, user("And?")]
    await ask(client, more, "s")
    assert (await session(live, "s"))["num_turns"] == 4


async def test_a_new_session_reads_the_whole_conversation(live: Running, client: AsyncOpenAI) -> None:
    history = [user("Hello."), {"role": "assistant", "content": "Hi."}, user("How are you?")]
    first = await ask(client, history, "s")
    assert (await session(live, "s"))["num_turns"] == 1
    await ask(
        client, [*history, {"role": "assistant", "content": first.choices[0].message.content}, user("Well.")], "s"
    )
    assert (await session(live, "s"))["num_turns"] == 2


async def test_a_system_message_is_read_once_and_again_when_it_changes(live: Running, client: AsyncOpenAI) -> None:
    plain = await talk(client, "plain", 2)
    history = await talk(client, "s", 2, system="You are kind to everybody.")
    one, two = await transcript(live, "s"), await transcript(live, "plain")
    sizes = [
        mine["usage"]["prompt_tokens"] - other["usage"]["prompt_tokens"] for mine, other in zip(one, two, strict=True)
    ]
    assert sizes[0] > 5
    assert sizes[1] == 0
    changed = [{"role": "developer", "content": "You are brief."}, *history[1:], user("And now?")]
    await ask(client, changed, "s")
    await ask(client, [*plain, user("And now?")], "plain")
    one, two = await transcript(live, "s"), await transcript(live, "plain")
    assert one[2]["usage"]["prompt_tokens"] > two[2]["usage"]["prompt_tokens"] + 2
    # Regenerated, it is read again: that it was read was undone.
    await ask(client, changed, "s")
    assert (await transcript(live, "s"))[2]["usage"]["prompt_tokens"] == one[2]["usage"]["prompt_tokens"]


async def test_without_a_session_all_is_read_and_nothing_kept(live: Running, client: AsyncOpenAI) -> None:
    history = [user("My dog is called Rex."), {"role": "assistant", "content": "Nice."}, user("What is he called?")]
    answers = [await ask(client, history) for _ in range(2)]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert "hope" not in answers[0].model_dump()
    assert answers[0].usage.prompt_tokens > (await ask(client, history[-1:])).usage.prompt_tokens
    assert (await live.http.get("/v1/sessions")).json()["data"] == []


@pytest.mark.parametrize("how", ["model", "header"])
@pytest.mark.parametrize("exists", [True, False])
async def test_hidden_prompts_are_never_learned(live: Running, client: AsyncOpenAI, how: str, exists: bool) -> None:
    history = await talk(client, "s", 2) if exists else []
    before = await session(live, "s")
    headers = {"X-Session-ID": "s", **({"X-OpenWebUI-Task": "title_generation"} if how == "header" else {})}
    answer = await client.chat.completions.create(
        model="hope-readonly" if how == "model" else "hope",
        messages=[*history, user("A title for this chat, please.")],
        extra_headers=headers,
        **FIXED,
    )
    assert "hope" not in answer.model_dump()
    assert await session(live, "s") == before


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"X-Session-ID": "a"}, {"session_id": "b", "metadata": {"session_id": "c"}}, "a"),
        ({"X-Chat-Id": "d"}, {"session_id": "b", "metadata": {"session_id": "c"}}, "b"),
        ({"X-OpenWebUI-Chat-Id": "d"}, {"metadata": {"session_id": "c"}}, "c"),
        ({"X-Chat-Id": "f", "X-Conversation-Id": "e", "X-OpenWebUI-Chat-Id": "d"}, {"user": "u"}, "d"),
        ({"X-Chat-Id": "f", "X-Conversation-Id": "e"}, {}, "e"),
        ({"X-Chat-Id": "f"}, {}, "f"),
        ({}, {"user": "u"}, None),
    ],
)
async def test_who_names_the_session_first(
    live: Running, headers: dict[str, str], body: dict[str, Any], expected: str | None
) -> None:
    asked = {"model": "hope", "messages": [user("Hello.")], **FIXED, **body}
    answer = await live.http.post(CHAT, json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-session-id") == expected
    listed = [one["id"] for one in (await live.http.get("/v1/sessions")).json()["data"]]
    assert listed == ([expected] if expected else [])


async def test_the_models_are_listed(client: AsyncOpenAI) -> None:
    found = [model async for model in client.models.list()]
    assert [(model.id, model.object) for model in found] == [("hope", "model"), ("hope-readonly", "model")]
    assert (await client.models.retrieve("hope-readonly")).id == "hope-readonly"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError) as refused:
        await ask(client, [user("Hello.")], model="gpt-4")
    assert refused.value.param == "model"


async def test_a_failure_in_the_middle_reaches_the_client(live: Running, client: AsyncOpenAI) -> None:
    stream = await ask(client, [user("Hello.")], "s", stream=True, max_tokens=1024, seed=1, temperature=1)
    with pytest.raises(openai.APIError) as failed:
        await _read_but_delete(stream, live)
    assert failed.value.code == "lease_lost"


async def _read_but_delete(stream: Any, live: Running) -> None:
    """Reads to the end; after the first words the session is deleted by somebody else."""
    deleted = False
    async for _ in stream:
        if not deleted:
            await live.http.delete("/v1/sessions/s")
            deleted = True


async def test_a_client_that_leaves_a_stream_has_taught_nothing(live: Running, client: AsyncOpenAI) -> None:
    await talk(client, "s", 1)
    stream = await ask(client, [user("Tell me.")], "s", stream=True, max_tokens=1024)
    async for _ in stream:
        break
    await stream.close()
    await ask(client, [user("Hello?")], "s")
    assert [turn["message"] for turn in await transcript(live, "s")] == ["This is number 0.", "Hello?"]


@pytest.mark.parametrize("streaming", [False, True])
async def test_langchain_talks_to_it(live: Running, streaming: bool) -> None:
    model = ChatOpenAI(
        model="hope",
        base_url=f"http://127.0.0.1:{live.port}/v1",
        api_key="none",  # type: ignore[arg-type]  # it takes a string too
        temperature=0,
        max_tokens=5,  # type: ignore[call-arg]  # an alias its stubs do not know
        streaming=streaming,
        stream_usage=True,
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
    assert [turn["reply"] for turn in turns] == [
        message.content for message in history if isinstance(message, AIMessage)
    ]
    assert (await session(live, "s"))["version"] == 3

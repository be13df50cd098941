"""Chat completions with logprobs: every token whose text is in the reply, whole or streamed, and nobody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.server.chatting import CHAT, ask, user

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from tests.server.running import Running

ASKED: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "max_tokens": 12}


def joined(tokens: list[Any]) -> bytes:
    return b"".join(bytes(token.bytes) for token in tokens)


async def test_every_token_of_the_reply_is_told_with_the_likeliest(client: AsyncOpenAI) -> None:
    choice = (await ask(client, [user("Hello.")], **ASKED)).choices[0]
    tokens = choice.logprobs.content
    assert joined(tokens).decode(errors="replace") == choice.message.content
    assert len(tokens) == 12
    for token in tokens:
        assert len(token.top_logprobs) == 3
        # At temperature 0 the likeliest is said; the temperature does not change how likely it was.
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == token.logprob
        assert 0 >= token.logprob >= token.top_logprobs[1].logprob >= token.top_logprobs[2].logprob
    sampled = (await ask(client, [user("Hello.")], **ASKED, temperature=2, seed=1)).choices[0].logprobs.content
    assert sampled[0].top_logprobs == tokens[0].top_logprobs
    assert any(token.logprob < token.top_logprobs[0].logprob for token in sampled)


async def test_a_stream_tells_the_same_tokens_beside_their_text(client: AsyncOpenAI) -> None:
    whole = (await ask(client, [user("Hello.")], **ASKED)).choices[0]
    for stop in (None, whole.message.content[7:9]):
        answer = (await ask(client, [user("Hello.")], **ASKED, stop=stop)).choices[0]
        chunks = [chunk async for chunk in await ask(client, [user("Hello.")], **ASKED, stop=stop, stream=True)]
        told = [chunk.choices[0] for chunk in chunks if chunk.choices[0].logprobs]
        assert all(choice.delta.content for choice in told)
        tokens = [token for choice in told for token in choice.logprobs.content]
        assert tokens == answer.logprobs.content
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == answer.message.content
        assert joined(tokens).startswith(text.encode())
        assert len(joined(tokens)) - len(text.encode()) < len(tokens[-1].bytes)
    assert len(text) < len(whole.message.content)


async def test_who_does_not_ask_is_told_nothing(live: Running, client: AsyncOpenAI) -> None:
    assert (await ask(client, [user("Hello.")])).choices[0].logprobs is None
    none = (await ask(client, [user("Hello.")], logprobs=True)).choices[0].logprobs.content
    assert [token.top_logprobs for token in none] == [[]] * 5
    # A turn that was stored is answered with its words; how likely they were is not kept.
    body = {"model": "hope", "messages": [user("Hello.")], "session_id": "s", "logprobs": True, "max_tokens": 3}
    answers = [(await live.http.post(CHAT, json=body, headers={"Idempotency-Key": "k"})).json() for _ in range(2)]
    assert answers[0]["id"] == answers[1]["id"]
    assert answers[0]["choices"][0]["logprobs"]["content"]
    assert answers[1]["choices"][0]["logprobs"] is None

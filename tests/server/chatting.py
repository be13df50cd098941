"""Talking to a server as openai's client does: the whole history with every turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openai import AsyncOpenAI

if TYPE_CHECKING:
    from tests.server.running import Running

CHAT = "/v1/chat/completions"
FIXED: dict[str, Any] = {"temperature": 0, "max_tokens": 5}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def ask(client: AsyncOpenAI, messages: list[Any], session_id: str | None = None, **fields: Any) -> Any:
    extra = {"X-Session-ID": session_id} if session_id else {}
    asked = {"model": "hope", **FIXED, **fields}
    return await client.chat.completions.create(messages=messages, extra_headers=extra, **asked)


async def talk(client: AsyncOpenAI, session_id: str, num_turns: int, system: str | None = None) -> list[Any]:
    """A conversation whose history is sent again with every turn; returns it."""
    history: list[Any] = [{"role": "system", "content": system}] if system else []
    for number in range(num_turns):
        history.append(user(f"This is number {number}."))
        answer = await ask(client, history, session_id)
        # As clients do: the whole message object, with all its empty fields.
        history.append(answer.choices[0].message.model_dump())
    return history


async def session(live: Running, session_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await live.http.get(f"/v1/sessions/{session_id}")).json()
    return found


async def transcript(live: Running, session_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await live.http.get(f"/v1/sessions/{session_id}/turns?limit=100")).json()["data"]
    return found

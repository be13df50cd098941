"""What clients of every kind do to their sessions, insisting on every turn by its key until it is answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx2
from hope_client import AsyncHopeClient, Conflict, HopeRequestError, NotFound

from tests.chaos.traffic import PASSING, PAUSE_S, Asked, Record

TIMEOUT_S = 30.0
OPTIONS: dict[str, Any] = {"max_tokens": 8, "timeout_s": 20.0}
SLOWLY_S = 0.2
RESPITE_S = 0.05
# Chances: of a session's end, of a question that is not learned, of a look at what is there.
DELETES, ASKS, READS = 0.01, 0.1, 0.1


@dataclass
class Deed(Asked):
    """A turn that was asked for; `cancelled` where that was the last word on it."""

    cancelled: bool = False


@dataclass
class Life:
    """One session, from one talker's side."""

    session_id: str
    kind: str
    deeds: list[Deed] = field(default_factory=list)
    deleted: bool = False


class Talker:
    """One client of one kind, and one session after the other, which nobody else speaks to.

    Args:
        url: of the server.
        kind: one of `KINDS`.
        name: tells it from others.
        ended: no new turn begins after this.
        given_up: nothing is repeated after this.
    """

    def __init__(self, url: str, kind: str, name: str, ended: asyncio.Event, given_up: asyncio.Event) -> None:
        self._url, self._kind, self._name = url, kind, name
        self._ended, self._given_up = ended, given_up
        self._chance = random.Random(name)
        self._say: Callable[[Deed], Awaitable[str | None]] = getattr(self, f"_{kind}")
        self.record, self.lives = Record(), list[Life]()

    async def run(self) -> None:
        """Talks until the end."""
        async with (
            AsyncHopeClient(self._url, timeout_s=TIMEOUT_S) as self._client,
            httpx2.AsyncClient(base_url=self._url, timeout=TIMEOUT_S) as self._http,
        ):
            while not self._ended.is_set():
                await self._live(Life(f"soak-{self._name}-{len(self.lives)}", self._kind))

    async def _live(self, life: Life) -> None:
        self.lives.append(life)
        await self._insist("create", lambda: self._create(life.session_id))
        while not self._ended.is_set():
            what = self._chance.random()
            if what < DELETES:
                life.deleted = await self._insist("delete", lambda: self._delete(life.session_id)) is not None
                return
            if what < DELETES + ASKS:
                await self._insist("ask", lambda: self._client.turn(life.session_id, "Well?", learn=False, **OPTIONS))
            elif what < DELETES + ASKS + READS:
                await self._insist("read", lambda: self._client.memory(life.session_id))
            else:
                deed = Deed(life.session_id, f"Word {len(life.deeds)} of {life.session_id}.")
                life.deeds.append(deed)
                deed.turn_id = await self._insist(self._kind, lambda deed=deed: self._say(deed))  # type: ignore[misc]
            await asyncio.sleep(RESPITE_S)

    async def _insist(self, kind: str, act: Callable[[], Awaitable[Any]]) -> Any:
        """Does it again until it is answered, or everything is given up."""
        begun, record = time.monotonic(), self.record
        record.asked[kind] += 1
        while True:
            try:
                answer = await act()
            except HopeRequestError as refusal:
                record.refusals[refusal.code] += 1
                if refusal.code not in PASSING:
                    record.violations.append(f"{kind}: {refusal.code}: {refusal}")
                    return None
            else:
                record.answered[kind] += 1
                record.longest_s[kind] = max(time.monotonic() - begun, record.longest_s.get(kind, 0.0))
                return answer
            if self._given_up.is_set():
                return None
            await asyncio.sleep(PAUSE_S)
            record.repeated[kind] += 1

    async def _create(self, session_id: str) -> None:
        try:
            await self._client.create_session(session_id)
        except Conflict:
            await self._client.session(session_id)  # an earlier attempt made it, and its answer was lost

    async def _delete(self, session_id: str) -> bool:
        try:
            await self._client.delete_session(session_id)
        except NotFound:  # an earlier attempt did it, and its answer was lost
            return True
        return True

    async def _json(self, deed: Deed) -> str:
        turn = await self._client.turn(deed.session_id, deed.message, idempotency_key=_key(deed), **OPTIONS)
        return turn["id"]

    async def _sse(self, deed: Deed) -> str | None:
        turn = self._client.turn_events(deed.session_id, deed.message, idempotency_key=_key(deed), **OPTIONS)
        async with aclosing(turn) as events:
            return await _last(deed, [event async for event in events])

    async def _websocket(self, deed: Deed) -> str | None:
        async with self._client.stream(deed.session_id) as conversation:
            turn = conversation.turn(deed.message, idempotency_key=_key(deed), **OPTIONS)
            return await _last(deed, [event async for event in turn])

    async def _slow(self, deed: Deed) -> str | None:
        """As `_websocket`, by a reader that takes its time."""
        events: list[Any] = []
        async with self._client.stream(deed.session_id) as conversation:
            async for event in conversation.turn(deed.message, idempotency_key=_key(deed), **OPTIONS):
                events.append(event)
                await asyncio.sleep(SLOWLY_S)
        return await _last(deed, events)

    async def _cancelling(self, deed: Deed) -> str | None:
        """As `_websocket`, and every other turn is cancelled at some token; one that is lost then is not known."""
        stop_at = self._chance.choice([0, 1, 3, 99])
        events: list[Any] = []
        async with self._client.stream(deed.session_id) as conversation:
            turn = conversation.turn(deed.message, idempotency_key=_key(deed), **OPTIONS)
            async for event in turn:
                events.append(event)
                if len(events) > stop_at:
                    await conversation.cancel()
        return await _last(deed, events)

    async def _chat(self, deed: Deed) -> str:
        """OpenAI's chat completions; the session's id is all the history it sends."""
        body = {"model": "hope", "messages": [{"role": "user", "content": deed.message}], "max_tokens": 8}
        headers = {"X-Session-ID": deed.session_id, "Idempotency-Key": _key(deed)}
        try:
            answer = await self._http.post("/v1/chat/completions", json=body, headers=headers)
        except httpx2.TransportError as error:
            raise HopeRequestError(str(error), "unreachable") from error
        if answer.status_code != 200:
            raise HopeRequestError(answer.json()["error"]["message"], answer.json()["error"]["code"])
        return str(answer.json()["id"]).removeprefix("chatcmpl-")


KINDS = ("json", "sse", "websocket", "slow", "cancelling", "chat")


async def _last(deed: Deed, events: list[Any]) -> str | None:
    deed.cancelled = events[-1]["type"] == "turn.cancelled"
    return None if deed.cancelled else str(events[-1]["turn"]["id"])


def _key(deed: Deed) -> str:
    return deed.message.replace(" ", "-")

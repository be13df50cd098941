"""The client: every route of the contract, for programs that await. `hope_client.blocking` has the same for those that
do not.

Returns what the server sends as plain dictionaries, typed in `hope_client.contract`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, Unpack, cast

from hope_client.contract import (
    Consolidation,
    Generation,
    Memory,
    Session,
    SessionDeleted,
    SetAside,
    Turn,
    TurnEvent,
    TurnOptions,
    Version,
)
from hope_client.conversation import AsyncConversation
from hope_client.errors import ConnectionLost
from hope_client.turns import DEFAULT_TIMEOUT_S, RunningTurn, new_key
from hope_client.wire import Wire, path_of

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_ATTEMPTS = 8
PAGE_SIZE = 100
# The server answers a consolidation that is waited for after ten minutes, ended or not.
CONSOLIDATION_WAIT_S = 600.0


class AsyncHopeClient:
    """A server, as `async with AsyncHopeClient(url) as client:`.

    A session is named by its id or by the dictionary that the server sent of it. What is safe to repeat is repeated
    when the server was lost or asked to wait: turns always, for each is asked with an idempotency key.

    Args:
        url: where it listens.
        api_key: sent with everything, where the server asks for keys.
        timeout_s: of one answer (a turn has its own `timeout_s` beside it), and of opening a websocket.
        max_attempts: how often a request is made in all; 1 never repeats.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        *,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._wire = Wire(url, api_key, timeout_s, max_attempts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the HTTP connections."""
        await self._wire.close()

    async def create_session(
        self, session_id: str | None = None, *, metadata: dict[str, str] | None = None, contribute: bool = False
    ) -> Session:
        """Begin a session. One that contributes teaches the other sessions of its tenant."""
        fields = {"id": session_id, "metadata": metadata or {}, "contribute": contribute}
        return cast(Session, await self._wire.call("POST", "/v1/sessions", fields))

    async def session(self, session: str | Session) -> Session:
        """One session, as it is now."""
        return cast(Session, await self._wire.call("GET", _path(session), once=True))

    async def sessions(self, *, page_size: int = PAGE_SIZE) -> AsyncIterator[Session]:
        """The key's sessions, fetched a page at a time."""
        async for session in self._pages("/v1/sessions", page_size):
            yield cast(Session, session)

    async def update_session(
        self, session: str | Session, *, metadata: dict[str, str] | None = None, contribute: bool | None = None
    ) -> Session:
        """Change metadata or whether the session contributes; what is left out stays."""
        changes = {"metadata": metadata, "contribute": contribute}
        given = {name: value for name, value in changes.items() if value is not None}
        return cast(Session, await self._wire.call("PATCH", _path(session), given, once=True))

    async def delete_session(self, session: str | Session) -> SessionDeleted:
        """Erase a session and everything that belongs to it."""
        return cast(SessionDeleted, await self._wire.call("DELETE", _path(session)))

    async def turn(
        self,
        session: str | Session,
        message: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[TurnOptions],
    ) -> Turn:
        """Say something and wait for the whole reply; memory and transcript are durable when this returns.

        Args:
            session: to whom.
            message: what to say.
            idempotency_key: the same key with the same turn returns the stored turn and learns nothing again. Made
                where it is left out; give one to be able to ask again after this program itself was restarted.
            options: how the turn is to be taken.
        """
        body = {"message": message, **options}
        headers = {"Idempotency-Key": idempotency_key or new_key()}
        turn = await self._wire.call(
            "POST", _path(session, "turns"), body, once=True, limit_s=self._limit_s(options), headers=headers
        )
        return cast(Turn, turn)

    async def turn_events(
        self,
        session: str | Session,
        message: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[TurnOptions],
    ) -> AsyncGenerator[TurnEvent]:
        """As `turn`, but yields the events as they come, over Server-Sent Events; `turn.completed` is the last.

        Closing the iterator earlier (`contextlib.aclosing` does so) hangs up, which cancels the turn.
        """
        wire, limit_s = self._wire, self._limit_s(options)
        body = {"message": message, "stream": True, **options}
        headers = {"Idempotency-Key": idempotency_key or new_key()}

        def ask() -> AsyncGenerator[dict[str, Any]]:
            return wire.events(_path(session, "turns"), body, headers, limit_s)

        source = ask()

        async def begin(again: bool) -> None:
            nonlocal source
            source = ask() if again else source

        async def receive() -> dict[str, Any]:
            return await anext(source)

        turn = RunningTurn(begin, receive, wire.patience(limit_s, once=True))
        try:
            while not turn.ended:
                yield await turn.next()
            with suppress(ConnectionLost):  # the turn has been told: only the end mark was still to come
                async for _ in source:
                    continue
        finally:
            await source.aclose()

    @asynccontextmanager
    async def stream(self, session: str | Session) -> AsyncIterator[AsyncConversation]:
        """A conversation over a websocket, closed at the end of the block.

        Raises:
            HopeRequestError: the session is unknown, the key is wrong, or nobody answers.
        """
        conversation = AsyncConversation(self._wire, _id(session))
        await conversation.connect()
        try:
            yield conversation
        finally:
            await conversation.close()

    async def transcript(self, session: str | Session, *, page_size: int = PAGE_SIZE) -> AsyncIterator[Turn]:
        """The session's turns, oldest first, fetched a page at a time."""
        async for turn in self._pages(_path(session, "turns"), page_size):
            yield cast(Turn, turn)

    async def memory(self, session: str | Session) -> Memory:
        """What the session's memory looks like from outside."""
        return cast(Memory, await self._wire.call("GET", _path(session, "memory"), once=True))

    async def versions(self, session: str | Session) -> list[Version]:
        """The versions of the session's memory that can be gone back to, newest first."""
        return cast(list[Version], await self._list(_path(session, "versions")))

    async def rollback(self, session: str | Session, version: int) -> Session:
        """Go back to a version (0: nothing read yet); what came after it is undone."""
        return cast(Session, await self._wire.call("POST", _path(session, "rollback"), {"version": version}))

    async def fork(self, session: str | Session, *, version: int | None = None, new_id: str | None = None) -> Session:
        """Begin a second session with the memory and transcript of this one, by default as they are now."""
        wanted = {"version": version, "id": new_id}
        return cast(Session, await self._wire.call("POST", _path(session, "fork"), wanted))

    async def export_session(self, session: str | Session) -> bytes:
        """The whole session as a safetensors file."""
        return (await self._wire.fetch("GET", _path(session, "export"), once=True)).content

    async def import_session(self, file: bytes, session_id: str | None = None) -> Session:
        """Begin a session from what `export_session` returned."""
        params = {"id": session_id} if session_id else {}
        answer = await self._wire.fetch("POST", "/v1/sessions/import", params=params, content=file)
        return cast(Session, answer.json())

    async def consolidate(self, *, wait: bool = False, without: str | None = None) -> Consolidation:
        """Have contributing sessions folded into a new generation (operator keys).

        Args:
            wait: return once it has ended, or after ten minutes; else it runs when this returns.
            without: a session, deleted or not: go back to before the generations that learned from it.
        """
        wanted = {"wait": wait, "without": without}
        limit_s = self._wire.timeout_s + (CONSOLIDATION_WAIT_S if wait else 0.0)
        return cast(Consolidation, await self._wire.call("POST", "/v1/consolidations", wanted, limit_s=limit_s))

    async def consolidation(self, consolidation_id: str) -> Consolidation:
        """How a consolidation goes (operator keys)."""
        path = path_of("consolidations", consolidation_id)
        return cast(Consolidation, await self._wire.call("GET", path, once=True))

    async def consolidations(self) -> list[Consolidation]:
        """The last hundred consolidations, newest first (operator keys)."""
        return cast(list[Consolidation], await self._list("/v1/consolidations"))

    async def generations(self) -> list[Generation]:
        """The generations that are kept, newest first; 0 is the checkpoint alone (operator keys)."""
        return cast(list[Generation], await self._list("/v1/generations"))

    async def activate_generation(self, generation: int) -> Generation:
        """Make a generation the active one, for all sessions from their next turn on (operator keys)."""
        path = path_of("generations", generation, "activate")
        return cast(Generation, await self._wire.call("POST", path, once=True))

    async def quarantine(self) -> list[SetAside]:
        """The sessions that spoiled candidates for a generation, latest first (operator keys)."""
        return cast(list[SetAside], await self._list("/v1/quarantine"))

    async def let_out(self, session: str | Session) -> None:
        """Have a session in quarantine tried again (operator keys)."""
        await self._wire.call("DELETE", path_of("quarantine", _id(session)), once=True)

    # The name that `stream` had first.
    open = stream

    def _limit_s(self, options: TurnOptions) -> float:
        return options.get("timeout_s", DEFAULT_TIMEOUT_S) + self._wire.timeout_s

    async def _list(self, path: str) -> Any:
        return (await self._wire.call("GET", path, once=True))["data"]

    async def _pages(self, path: str, page_size: int) -> AsyncIterator[Any]:
        after: dict[str, str] = {}
        has_more = True
        while has_more:
            page = await self._wire.call("GET", path, once=True, params={"limit": page_size, **after})
            for one in page["data"]:
                yield one
                after = {"after": one["id"]}
            has_more = page["has_more"]


def _id(session: str | Session) -> str:
    return session if isinstance(session, str) else session["id"]


def _path(session: str | Session, *more: str) -> str:
    return path_of("sessions", _id(session), *more)

"""The client for programs that do not await: the methods of `AsyncHopeClient`, each waiting for its result.

Nothing is written twice: the work is done by the other client, on an event loop in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from hope_client.client import DEFAULT_URL, MAX_ATTEMPTS, AsyncHopeClient
from hope_client.contract import Session
from hope_client.conversation import AsyncConversation
from hope_client.portal import Face, Portal, blocking, iterating


class Conversation(Face[AsyncConversation]):
    """One session's websocket; see `AsyncConversation`.

    A Ctrl-C during `turn` leaves the turn running: `cancel` stops it, `rest` says how it ended.
    """

    @property
    def session(self) -> Session:
        """The session as it was when the socket was opened last."""
        return self._core.session

    turn = iterating(AsyncConversation.turn)
    rest = iterating(AsyncConversation.rest)
    cancel = blocking(AsyncConversation.cancel)
    connect = blocking(AsyncConversation.connect)
    close = blocking(AsyncConversation.close)


class HopeClient(Face[AsyncHopeClient]):
    """A server, as `with HopeClient(url) as client:`; see `AsyncHopeClient`. Threads may share one."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        *,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        super().__init__(Portal(), AsyncHopeClient(url, api_key, timeout_s, max_attempts=max_attempts))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections, and of the thread."""
        if not self._portal.closed:
            self._portal.run(self._core.close())
            self._portal.close()

    create_session = blocking(AsyncHopeClient.create_session)
    session = blocking(AsyncHopeClient.session)
    sessions = iterating(AsyncHopeClient.sessions)
    update_session = blocking(AsyncHopeClient.update_session)
    delete_session = blocking(AsyncHopeClient.delete_session)
    turn = blocking(AsyncHopeClient.turn)
    turn_events = iterating(AsyncHopeClient.turn_events)
    transcript = iterating(AsyncHopeClient.transcript)
    memory = blocking(AsyncHopeClient.memory)
    versions = blocking(AsyncHopeClient.versions)
    rollback = blocking(AsyncHopeClient.rollback)
    fork = blocking(AsyncHopeClient.fork)
    export_session = blocking(AsyncHopeClient.export_session)
    import_session = blocking(AsyncHopeClient.import_session)
    consolidate = blocking(AsyncHopeClient.consolidate)
    consolidation = blocking(AsyncHopeClient.consolidation)
    consolidations = blocking(AsyncHopeClient.consolidations)
    generations = blocking(AsyncHopeClient.generations)
    activate_generation = blocking(AsyncHopeClient.activate_generation)
    quarantine = blocking(AsyncHopeClient.quarantine)
    let_out = blocking(AsyncHopeClient.let_out)

    @contextmanager
    def stream(self, session: str | Session) -> Iterator[Conversation]:
        """A conversation over a websocket, closed at the end of the block; see `AsyncHopeClient.stream`."""
        opening = self._core.stream(session)
        conversation = Conversation(self._portal, self._portal.run(opening.__aenter__()))
        try:
            yield conversation
        finally:
            self._portal.run(opening.__aexit__(None, None, None))

    # The name that `stream` had first.
    open = stream

"""Who may begin a turn, and how every turn ended: admitted or refused, counted while it runs, reported when it is over.

Knows no session and no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from engine.config import EngineSettings
from engine.core import Observer, TurnCompleted, TurnEvent, TurnRequest
from engine.errors import (
    DeadlineExceeded,
    Draining,
    HopeError,
    InvalidRequest,
    Overloaded,
    TooLarge,
    TurnCancelled,
)
from engine.tokenizer import Tokenizer

BUSY_RETRY_S = 1.0


class Admission:
    """The turns that run.

    Attributes:
        draining: turns are refused from now on; running ones go on.
        idle: set while none runs.
    """

    def __init__(self, tokenizer: Tokenizer, settings: EngineSettings, observer: Observer) -> None:
        self._tokenizer, self._settings, self._observer = tokenizer, settings, observer
        self._open_turns = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def full(self) -> bool:
        """Whether the next turn is refused."""
        return self._open_turns >= self._settings.max_queue

    async def counted(
        self, request: TurnRequest, turn: AsyncGenerator[TurnEvent, None], arrived: float
    ) -> AsyncGenerator[TurnEvent, None]:
        """The events of a turn that was admitted; how it ended is reported."""
        try:
            self._admit(request)
        except HopeError:
            self._observer.turn_finished("refused", None, 0.0, time.monotonic() - arrived)
            raise
        self._open_turns += 1
        self.idle.clear()
        outcome, finished = "failed", None
        try:
            async with contextlib.aclosing(turn) as events:
                async for event in events:
                    if isinstance(event, TurnCompleted):
                        outcome, finished = "replayed" if event.replayed else "completed", event.turn
                    yield event
        except (GeneratorExit, asyncio.CancelledError, TurnCancelled):
            outcome = outcome if finished else "cancelled"
            raise
        except DeadlineExceeded:
            outcome = "deadline"
            raise
        finally:
            self._open_turns -= 1
            if not self._open_turns:
                self.idle.set()
            queue_s = finished.timing.queue_ms / 1000 if finished and outcome == "completed" else 0.0
            self._observer.turn_finished(outcome, finished, queue_s, time.monotonic() - arrived)

    def _admit(self, request: TurnRequest) -> None:
        if self.draining:
            raise Draining("the server is stopping; try again on another one", retry_after_s=BUSY_RETRY_S)
        if self.full:
            raise Overloaded("too many turns are waiting; try again shortly", retry_after_s=BUSY_RETRY_S)
        if not request.message:
            raise InvalidRequest("the message is empty: say something", param="message")
        size = sum(
            len(self._tokenizer.encode(text)) for text in (request.message, *(one.text for one in request.before))
        )
        if size > self._settings.max_message_tokens:
            raise TooLarge(
                f"the message has {size} tokens, more than {self._settings.max_message_tokens}: split it",
                param="message",
            )

"""Who may begin a turn, and how every turn ended: admitted or refused, counted while it runs, reported when it is over.

Knows no session.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

from engine.config import EngineSettings
from engine.core import Turn, TurnCompleted, TurnEvent, TurnRequest
from engine.errors import (
    DeadlineExceeded,
    Draining,
    HopeError,
    InvalidRequest,
    Overloaded,
    RateLimited,
    StoreUnavailable,
    TooLarge,
    TurnCancelled,
)
from engine.observer import Observer
from engine.sessions.limits import LEARNED, TOKENS, TURNS, Limits
from engine.sessions.store import SessionStore
from engine.tokenizer import Tokenizer

BUSY_RETRY_S = 1.0


class Admission:
    """The turns that run.

    Attributes:
        draining: turns are refused from now on; running ones go on.
        idle: set while none runs.
    """

    def __init__(self, tokenizer: Tokenizer, store: SessionStore, settings: EngineSettings, observer: Observer) -> None:
        self._tokenizer, self._settings, self._observer = tokenizer, settings, observer
        limits = Limits(
            settings.turns_per_minute,
            settings.tokens_per_minute,
            settings.learned_tokens_per_minute,
            settings.learned_tokens_per_session_hour,
        )
        self._limiter = store.limiter(limits)
        self._open_turns = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def full(self) -> bool:
        """Whether the next turn is refused."""
        return self._open_turns >= self._settings.max_queue

    async def counted(self, turn: AsyncGenerator[TurnEvent, None], arrived: float) -> AsyncGenerator[TurnEvent, None]:
        """The events of a turn, if there is room for it; how it ended is reported.

        Raises:
            Draining, Overloaded: there is none.
        """
        try:
            self._make_room()
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
        except (InvalidRequest, TooLarge, RateLimited):
            outcome = "refused"
            raise
        finally:
            self._open_turns -= 1
            if not self._open_turns:
                self.idle.set()
            queue_s = finished.timing.queue_ms / 1000 if finished and outcome == "completed" else 0.0
            self._observer.turn_finished(outcome, finished, queue_s, time.monotonic() - arrived)

    def measure(self, request: TurnRequest) -> int:
        """Tokens that a turn is going to read.

        Raises:
            InvalidRequest: none at all.
            TooLarge: more than a turn may.
        """
        if not request.message:
            raise InvalidRequest("the message is empty: say something", param="message")
        texts = [request.message, *(said.text for said in request.before)]
        size = sum(len(self._tokenizer.encode(text)) for text in texts)
        if size > self._settings.max_message_tokens:
            raise TooLarge(
                f"the message has {size} tokens, more than {self._settings.max_message_tokens}: split it",
                param="message",
            )
        return size

    async def take_credit(self, tenant: str, session_id: str, request: TurnRequest, num_tokens: int) -> TurnRequest:
        """Lets a turn begin that reads so many tokens.

        Returns:
            The request; where its session has learned enough for now, one that learns nothing.

        Raises:
            RateLimited: the tenant has no credit left, or the session has none and the turn is for learning only.
        """
        if request.learn and session_id:
            wait_s = await self._limiter.learn(tenant, session_id, num_tokens)
            if wait_s and not request.max_tokens:
                limit = self._settings.learned_tokens_per_session_hour
                raise RateLimited(
                    f"the session has learned from its {limit} tokens an hour: wait, or feed it less at once",
                    retry_after_s=wait_s,
                )
            request = replace(request, learn=not wait_s)
        try:
            used = {TURNS: 1, TOKENS: num_tokens} | ({LEARNED: num_tokens} if request.learn else {})
            await self._limiter.take(tenant, used)
        except RateLimited:
            if request.learn and session_id:
                await self._limiter.learn(tenant, session_id, -num_tokens, anyhow=True)
            raise
        return request

    async def take_spoken(self, tenant: str, turn: Turn) -> None:
        """What the turn has spoken and, where it did, learned from."""
        spoken = turn.usage.completion_tokens
        used = {TOKENS: spoken} | ({LEARNED: spoken} if turn.memory.learned else {})
        # The turn is over, whatever becomes of its account.
        with contextlib.suppress(StoreUnavailable):
            await self._limiter.take(tenant, used, anyhow=True)
            if turn.memory.learned:
                await self._limiter.learn(tenant, turn.session_id, spoken, anyhow=True)

    def _make_room(self) -> None:
        if self.draining:
            raise Draining("the server is stopping; try again on another one", retry_after_s=BUSY_RETRY_S)
        if self.full:
            raise Overloaded("too many turns are waiting; try again shortly", retry_after_s=BUSY_RETRY_S)

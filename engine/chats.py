"""Conversations of clients that send everything said so far each time: what of it is new, and where it goes on.

By the digest chain of a session (`sessions/chain.py`) what was read and said already is known again. Knows no web.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from engine.core import Said, Session, TurnEvent, TurnRequest
from engine.errors import Conflict, InvalidRequest, NotFound
from engine.sessions.chain import ASSISTANT, BEGINNING, SYSTEM, alone, extend, marks
from engine.sessions.past import num_turns_until, version_with
from engine.sessions.records import Head, now_iso
from engine.sessions.store import SessionStore
from engine.turns import Turns, digest_of

# How often a plan is made anew because the session moved between plan and turn (the worker, another replica).
ATTEMPTS = 5


class Chats:
    """Turns from whole conversations.

    Args:
        store: of the sessions.
        turns: run them.
    """

    def __init__(self, store: SessionStore, turns: Turns) -> None:
        self._store, self._turns = store, turns

    async def run(
        self,
        tenant: str,
        session_id: str | None,
        messages: Sequence[Said],
        request: TurnRequest,
        arrived: float,
        follows: str | None = None,
    ) -> AsyncGenerator[TurnEvent, None]:
        """The events of the turn. See `Engine.chat`."""
        digest = digest_of(request, messages)
        everything = _read(messages, request)
        for attempt in range(1, ATTEMPTS + 1):
            if session_id is None:
                head = None
            elif follows is not None:
                head = await self._store.head(tenant, session_id)
            else:
                head = await self._head(tenant, session_id, everything)
            if head is None:
                planned = replace(everything, learn=False)
            elif await self._is_answered(tenant, head.session.id, request, digest):
                # Whatever was said since, and however far back that is: the turn is there, and nothing is read.
                planned = replace(everything, before=())
            else:
                planned = await self._plan(tenant, head, messages, request, follows)
            turn = self._turns.run(tenant, head.session.id if head else "", planned, arrived, digest)
            begun = False
            try:
                async with contextlib.aclosing(turn) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except Conflict as error:
                if begun or error.param != "if_version" or attempt == ATTEMPTS:
                    raise

    async def _is_answered(self, tenant: str, session_id: str, request: TurnRequest, digest: str) -> bool:
        """Whether this request's key was used, for the same request."""
        key = request.idempotency_key
        return key is not None and await self._store.stored_turn(tenant, session_id, key, digest) is not None

    async def _head(self, tenant: str, session_id: str, everything: TurnRequest) -> Head | None:
        """The session, made where it is new; None where it is new and is to leave no trace."""
        try:
            return await self._store.head(tenant, session_id)
        except NotFound:
            if not everything.learn:
                return None
        # A new session reads it all: what is too much for a turn must not leave one behind.
        self._turns.admission.measure(everything)
        now = now_iso()
        with contextlib.suppress(Conflict):  # another request of the same conversation was faster
            await self._store.create(tenant, Session(session_id, now, now))
        return await self._store.head(tenant, session_id)

    async def _plan(
        self, tenant: str, head: Head, messages: Sequence[Said], request: TurnRequest, follows: str | None
    ) -> TurnRequest:
        """The turn that reads what of the conversation is new, after what of it is not."""
        session = head.session
        # What follows a turn that was named is new, whoever said it.
        spoken = marks(messages) if follows is None else []
        systems = [said for said in messages if said.role == SYSTEM]
        digests = [digest for _, digest in spoken] + [alone(said) for said in systems]
        found = await self._store.find_history(tenant, session.id, digests)
        known = [(number, index) for (number, _), index in zip(spoken, found, strict=False) if index is not None]
        num_known, num_turns = known[-1] if known else (0, -1)
        num_turns += 1
        new = [said for said in messages[num_known:] if said.role != SYSTEM]
        answers = any(said.role == ASSISTANT for said in new)
        if follows is not None:
            num_turns = await num_turns_until(self._store, tenant, session, follows)
        elif not known and not spoken and session.num_turns:
            # Only what is new, from a client that sends no history; but the first message once more is a retry.
            again = await self._is_first_again(tenant, head, messages)
            num_turns = 0 if again else session.num_turns
        elif num_turns < session.num_turns and answers:
            raise Conflict(
                "the conversation contradicts the session's transcript: send the assistant's messages as they came, "
                "or use a new session",
                param="messages",
            )
        back_to = None
        if num_turns < session.num_turns:
            back_to = await version_with(self._store, tenant, session, num_turns)
        read_then = {
            said.text
            for said, index in zip(systems, found[len(spoken) :], strict=True)
            if index is not None and index < num_turns
        }
        fresh = [said for said in systems if said.text not in read_then]
        return replace(_read([*fresh, *new], request), if_version=session.version, back_to=back_to)

    async def _is_first_again(self, tenant: str, head: Head, messages: Sequence[Said]) -> bool:
        """Whether these are what the session's only turn has read."""
        if head.session.num_turns != 1:
            return False
        turns = await self._store.turns_at(tenant, head.session.id, 0, 1)
        return any(extend(BEGINNING, [*messages, Said(ASSISTANT, turn.reply)]) == head.history for turn in turns)


def _read(messages: Sequence[Said], request: TurnRequest) -> TurnRequest:
    """The turn that reads these messages, the last of them its own; raises InvalidRequest where that is no user's."""
    if not messages or messages[-1].role != "user":
        raise InvalidRequest("the last message must be the user's: there is nothing new to answer", param="messages")
    return replace(request, message=messages[-1].text, before=tuple(messages[:-1]))

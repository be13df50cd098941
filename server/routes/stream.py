"""A session's websocket: greeting, turns, cancelling, pings. How frames and events travel `server/sockets.py` knows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import ValidationError
from starlette.websockets import WebSocket

from engine import Draining, HopeError, Session
from server.auth import SUBPROTOCOL, Caller
from server.errors import error_body, from_validation
from server.schemas import CLIENT_FRAME, PingFrame, SessionId, TurnCreateFrame
from server.service import Service, Serving
from server.sockets import TurnSocket
from server.wording import TurnWording

router = APIRouter(prefix="/v1/sessions", tags=["turns"])


async def _open_session(session_id: SessionId, caller: Caller, service: Serving) -> Session:
    """The session, or the error that refuses the socket before anything runs on it."""
    if service.lifecycle.draining:
        raise Draining("The server is stopping; connect again in a moment.")
    return await service.engine.session(caller.tenant, session_id)


@router.websocket("/{session_id}/stream")
async def stream_turns(
    socket: WebSocket, caller: Caller, session: Annotated[Session, Depends(_open_session)], service: Serving
) -> None:
    """Greet, then serve turns until either side leaves."""
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
    await SessionSocket(socket, caller.tenant, session, service).serve()


class SessionSocket(TurnSocket):
    """One accepted websocket of one session."""

    busy = "A turn is still running on this socket; wait for its end or send turn.cancel."

    def __init__(self, socket: WebSocket, tenant: str, session: Session, service: Service) -> None:
        super().__init__(socket, service)
        self._tenant, self._session, self._engine = tenant, session, service.engine
        self._max_new_tokens = service.settings.engine.max_new_tokens

    def greet(self) -> None:
        """See `TurnSocket`."""
        self.send({"type": "session.ready", "session": asdict(self._session)})

    def obey(self, frame: Any) -> None:
        """See `TurnSocket`."""
        try:
            asked = CLIENT_FRAME.validate_python(frame)
        except ValidationError as error:
            raise from_validation(error.errors()) from None
        if isinstance(asked, PingFrame):
            self.send({"type": "pong"})
        elif isinstance(asked, TurnCreateFrame):
            self.check_free()
            request = asked.turn.to_request(self._max_new_tokens, asked.idempotency_key)
            turn = self._engine.turn(self._tenant, self._session.id, request)
            self.start(turn, TurnWording(told_by_id=True))
        else:
            self.cancel()

    def refuse(self, error: HopeError, frame: Any) -> None:
        """See `TurnSocket`."""
        self.send({"type": "error", **error_body(error)})

"""Sessions: make, list, look at, change and erase one; its transcript and its memory from outside.

Only translates: what a session is, and whose, the engine knows.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from engine import Conflict, MemoryView, NotFound, Session
from server.auth import Caller
from server.reference import failures
from server.schemas import (
    After,
    Limit,
    SessionCreate,
    SessionDeleted,
    SessionId,
    SessionList,
    SessionUpdate,
    TurnList,
)
from server.service import Serving

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

_UNKNOWN = failures(NotFound)


@router.post("", status_code=201, responses=failures(Conflict))
async def create_session(
    caller: Caller, service: Serving, body: Annotated[SessionCreate | None, Body()] = None
) -> Session:
    """Begin a conversation with a memory of its own. Without an id it is given one."""
    wanted = body or SessionCreate()
    return await service.engine.create_session(caller.tenant, wanted.id, wanted.metadata, wanted.contribute)


@router.get("")
async def list_sessions(caller: Caller, service: Serving, limit: Limit = 20, after: After = None) -> SessionList:
    """The caller's sessions, a page at a time."""
    found, has_more = await service.engine.sessions(caller.tenant, limit, after)
    return SessionList(found, has_more)


@router.get("/{session_id}", responses=_UNKNOWN)
async def read_session(session_id: SessionId, caller: Caller, service: Serving) -> Session:
    """One session."""
    return await service.engine.session(caller.tenant, session_id)


@router.patch("/{session_id}", responses=_UNKNOWN)
async def update_session(session_id: SessionId, body: SessionUpdate, caller: Caller, service: Serving) -> Session:
    """Change metadata or whether the session contributes; what is left out stays."""
    return await service.engine.update_session(caller.tenant, session_id, body.metadata, body.contribute)


@router.delete("/{session_id}", response_model_exclude_none=True, responses=_UNKNOWN)
async def delete_session(session_id: SessionId, caller: Caller, service: Serving) -> SessionDeleted:
    """Erase the session: memory, transcript and every record of it; no later generation learns from it."""
    learned = await service.engine.delete_session(caller.tenant, session_id)
    return SessionDeleted(session_id, generations=learned or None)


@router.get("/{session_id}/turns", responses=_UNKNOWN)
async def list_turns(
    session_id: SessionId, caller: Caller, service: Serving, limit: Limit = 20, after: After = None
) -> TurnList:
    """The transcript, oldest turn first."""
    found, has_more = await service.engine.turns(caller.tenant, session_id, limit, after)
    return TurnList(found, has_more)


@router.get("/{session_id}/memory", responses=_UNKNOWN)
async def read_memory(session_id: SessionId, caller: Caller, service: Serving) -> MemoryView:
    """What the memory looks like from outside: its levels, and how surprising each turn was."""
    return await service.engine.memory(caller.tenant, session_id)

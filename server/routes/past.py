"""A session's past: its versions, back to one, a second session from one; and out into a file and in from one.

Only translates: what a version is, and what a file holds, the engine knows.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response

from engine import Conflict, NotFound, Session
from server.auth import Caller
from server.reference import failures
from server.schemas import SESSION_ID, SessionFork, SessionId, SessionRollback, VersionList
from server.service import Serving

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

IMPORT_PATH = "/v1/sessions/import"
OCTETS = "application/octet-stream"
_FILE: dict[str, Any] = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}


@router.get("/{session_id}/versions", responses=failures(NotFound))
async def list_versions(session_id: SessionId, caller: Caller, service: Serving) -> VersionList:
    """The versions of the memory that can be gone back to, newest first; 0, nothing read yet, always can."""
    return VersionList(await service.engine.versions(caller.tenant, session_id))


@router.post("/{session_id}/rollback", responses=failures(NotFound, Conflict))
async def roll_back(session_id: SessionId, body: SessionRollback, caller: Caller, service: Serving) -> Session:
    """Go back to a version: its memory becomes the head's, bit for bit, and what came after it is undone."""
    return await service.engine.rollback(caller.tenant, session_id, body.version)


@router.post("/{session_id}/fork", status_code=201, responses=failures(NotFound, Conflict))
async def fork(
    session_id: SessionId, caller: Caller, service: Serving, body: Annotated[SessionFork | None, Body()] = None
) -> Session:
    """Begin a second session with the memory and transcript of this one. It does not contribute until told to."""
    wanted = body or SessionFork()
    return await service.engine.fork(caller.tenant, session_id, wanted.version, wanted.id)


@router.get(
    "/{session_id}/export",
    response_class=Response,
    responses={
        200: {"content": _FILE, "description": "A safetensors file, session and transcript in its header."},
        **failures(NotFound, Conflict),
    },
)
async def export(session_id: SessionId, caller: Caller, service: Serving) -> Response:
    """The whole session as a file."""
    file = await service.engine.export_session(caller.tenant, session_id)
    name = f'attachment; filename="{session_id}.safetensors"'
    return Response(file, media_type=OCTETS, headers={"Content-Disposition": name})


@router.post(
    IMPORT_PATH.removeprefix(router.prefix),
    status_code=201,
    responses=failures(Conflict),
    openapi_extra={"requestBody": {"required": True, "content": _FILE}},
)
async def import_session(
    request: Request,
    caller: Caller,
    service: Serving,
    id: Annotated[str | None, Query(pattern=SESSION_ID, description="of the new session")] = None,
) -> Session:
    """Begin a session with an exported one's memory and transcript; the file is the body."""
    return await service.engine.import_session(caller.tenant, await request.body(), id)

"""What a tenant's sessions share: have it consolidated, see how that went, switch between generations.

For keys of role `operator`. Only translates: what a consolidation does, the engine knows.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Response

from engine import Consolidation, GenerationView
from server.auth import Operator
from server.schemas import (
    ConsolidationCreate,
    ConsolidationList,
    GenerationList,
    QuarantineDeleted,
    QuarantineList,
    SessionId,
)
from server.service import Serving

router = APIRouter(prefix="/v1", tags=["consolidation"])

_ENDED: dict[int | str, dict[str, Any]] = {200: {"model": Consolidation, "description": "It has ended (`wait`)."}}


@router.post("/consolidations", status_code=202, responses=_ENDED)
async def consolidate(
    response: Response,
    caller: Operator,
    service: Serving,
    body: Annotated[ConsolidationCreate | None, Body()] = None,
) -> Consolidation:
    """Fold what contributing sessions were told into a new generation; one that runs already is answered with."""
    wanted = body or ConsolidationCreate()
    consolidation = await service.engine.consolidate(caller.tenant, wait=wanted.wait, without=wanted.without)
    if consolidation.status != "running":
        response.status_code = 200
    return consolidation


@router.get("/consolidations")
async def list_consolidations(caller: Operator, service: Serving) -> ConsolidationList:
    """The last hundred consolidations, newest first."""
    return ConsolidationList(await service.engine.consolidations(caller.tenant))


@router.get("/consolidations/{consolidation_id}")
async def read_consolidation(
    consolidation_id: Annotated[str, Path(max_length=128)], caller: Operator, service: Serving
) -> Consolidation:
    """One consolidation, with the gate's figures once it has ended."""
    return await service.engine.consolidation(caller.tenant, consolidation_id)


@router.get("/generations")
async def list_generations(caller: Operator, service: Serving) -> GenerationList:
    """The generations that are kept, newest first; 0 is the checkpoint alone."""
    return GenerationList(await service.engine.generations(caller.tenant))


@router.post("/generations/{generation}/activate")
async def activate(
    generation: Annotated[int, Path(ge=0, lt=2**63)], caller: Operator, service: Serving
) -> GenerationView:
    """Roll the shared levels back or forward; every replica follows with its next turn."""
    return await service.engine.activate_generation(caller.tenant, generation)


@router.get("/quarantine")
async def list_quarantine(caller: Operator, service: Serving) -> QuarantineList:
    """The sessions that spoiled candidates for a generation, latest first; an excluded one is tried no more."""
    return QuarantineList(await service.engine.quarantine(caller.tenant))


@router.delete("/quarantine/{session_id}")
async def let_out(session_id: SessionId, caller: Operator, service: Serving) -> QuarantineDeleted:
    """Have a session tried again; the next consolidation takes it in with the others."""
    await service.engine.let_out(caller.tenant, session_id)
    return QuarantineDeleted(session_id)

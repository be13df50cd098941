"""Probes and counters: is the process alive, should it get traffic, and what has it done.

The only routes that need no key are the probes.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from engine import Draining, Forbidden, InvalidRequest, StoreUnavailable, Unauthorized, Unavailable
from server.auth import Principal, allow_metrics
from server.reference import failures
from server.service import Serving

router = APIRouter(tags=["running it"], responses=failures(Unavailable))
metrics_router = APIRouter(tags=["running it"], responses=failures(InvalidRequest, Unauthorized, Forbidden))


@router.get("/livez")
async def livez(service: Serving) -> dict[str, str]:
    """Event loop and engine thread are alive. Never asks the store."""
    if not service.monitor.alive:
        raise Unavailable("The engine thread has stopped working; restart the process.")
    return {"status": "ok"}


@router.get("/readyz")
@router.get("/health")
async def readyz(service: Serving) -> dict[str, str]:
    """Model loaded, store answering, not draining, queue below its mark; else 503 with the reason."""
    if service.lifecycle.draining:
        raise Draining("The server is stopping.")
    health = service.monitor.readiness
    if not health.ready:
        reason = health.reason or "not ready"
        kind = StoreUnavailable if "store" in reason.lower() or "redis" in reason.lower() else Unavailable
        raise kind(f"Not ready: {reason}.")
    return {"status": "ready", "model": service.engine.model_name}


@metrics_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}, "description": "The counters."}},
)
async def metrics(service: Serving, caller: Annotated[Principal, Depends(allow_metrics)]) -> Response:
    """The counters as Prometheus text."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

"""The FastAPI application around one opened engine: middleware, error answers, routes.

Opens no engine and reads no environment: `server/serve.py` does, and tests build it around one of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from server import errors, reference
from server.lifecycle import Lifecycle
from server.middleware import BodyLimit, RequestContext
from server.monitor import Monitor
from server.routes import chat, generations, health, pages, past, responses, sessions, stream, turns
from server.service import Service

if TYPE_CHECKING:
    from engine import Engine
    from server.metrics import Metrics
    from server.settings import Settings

# What a page of another origin may read of an answer's headers, and for how long its browser need not ask again.
SHOWN_HEADERS = ("X-Request-ID", "Retry-After")
_PREFLIGHT_S = 600

# What cancelled handlers get to undo their turns: uvicorn does not wait for them, and the engine closes next.
_CLEAN_UP_TIMEOUT_S = 2.0


def create_app(engine: Engine, settings: Settings, metrics: Metrics) -> FastAPI:
    """Build the app. Whoever opened the engine closes it, after the app's lifespan has ended.

    Args:
        engine: opened, with `metrics` as its observer.
        settings: the server's part is used here, and `max_new_tokens` and the drain timeout of the engine's.
        metrics: shown at /metrics unless they have a port of their own.
    """
    app = FastAPI(
        title="Hope",
        summary="A chat server whose memory is in the weights.",
        version="1",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.service = Service(
        engine=engine,
        settings=settings,
        metrics=metrics,
        lifecycle=Lifecycle(settings.engine.drain_timeout_s, engine.begin_drain),
        monitor=Monitor(engine, metrics),
    )
    errors.install(app)
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.server.max_body_bytes,
        larger={past.IMPORT_PATH: settings.server.max_import_bytes},
    )
    if settings.server.cors_origins:
        # Keys travel in a header that a page has to set, and not as cookies: no credentials.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.server.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=SHOWN_HEADERS,
            max_age=_PREFLIGHT_S,
        )
    app.add_middleware(RequestContext, metrics=metrics)
    for room in (sessions, past, turns, chat, responses, stream, generations):
        app.include_router(room.router, responses=reference.ANYWHERE)
    for page in (pages, health):
        app.include_router(page.router)
    if settings.server.metrics_port is None:
        app.include_router(health.metrics_router)
    reference.install(app, with_keys=bool(settings.server.api_keys), max_new_tokens=settings.engine.max_new_tokens)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    watch = asyncio.create_task(service.monitor.watch())
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.wait({watch})
        await service.lifecycle.wait_until_idle(_CLEAN_UP_TIMEOUT_S)

"""What every route needs, in one place: engine, settings, counters, and whether the server is stopping.

Held by the app and handed to routes as a dependency; there is no global state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from engine import Engine
    from server.lifecycle import Lifecycle
    from server.metrics import Metrics
    from server.monitor import Monitor
    from server.settings import Settings


@dataclass(frozen=True)
class Service:
    """One running server."""

    engine: Engine
    settings: Settings
    metrics: Metrics
    lifecycle: Lifecycle
    monitor: Monitor


async def _service(connection: HTTPConnection) -> Any:
    return connection.app.state.service


Serving = Annotated[Service, Depends(_service)]

"""What happens around every request: an id, a size limit, a count and one log line.

Pure ASGI, so that websockets and streams pass through it too. Of bodies it knows only the length.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from engine import TooLarge
from server.errors import error_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.metrics import Metrics

access_log = logging.getLogger("hope.access")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})

# How much of a body that is too large is still read, and for how long, before the answer: most clients only
# look for one after they have sent everything.
_DISCARD_BYTES = 64 * 2**20
_DISCARD_TIMEOUT_S = 5.0


class RequestContext:
    """Echo or make X-Request-ID, count the request, and log it as one line of JSON without any content."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 500
        started_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                    headers = MutableHeaders(scope=message)
                    headers["X-Request-ID"] = request_id
                    headers["X-Content-Type-Options"] = "nosniff"
                case "websocket.accept":
                    status = 101
                    MutableHeaders(scope=message)["X-Request-ID"] = request_id
                case "websocket.close":
                    status = message.get("code", 1000)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._account(scope, request_id, status, time.monotonic() - started_s)

    def _account(self, scope: Scope, request_id: str, status: int, duration_s: float) -> None:
        # The route's template, never the path: a session's id must not become a label.
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.requests.labels(route, str(status)).inc()
        if scope["type"] == "http":
            self.metrics.request_duration.labels(route).observe(duration_s)
        if route not in _PROBES:
            line = {
                "request_id": request_id,
                "method": scope.get("method", "WS"),
                "route": route,
                "status": status,
                "duration_ms": round(duration_s * 1000, 1),
            }
            access_log.info(json.dumps(line))


class BodyLimit:
    """Refuse a body over the limit before anything parses it, by its declared length or by counting.

    `larger` holds the limits of paths that take more.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, larger: Mapping[str, int]) -> None:
        self.app = app
        self.max_body_bytes, self.larger = max_body_bytes, larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, limit = Headers(scope=scope), self.larger.get(scope["path"], self.max_body_bytes)
        declared = headers.get("content-length")
        if declared is not None and declared.isdecimal():
            if int(declared) <= limit:
                await self.app(scope, receive, send)
            else:
                await _discard_some(receive)
                await self._refuse(scope, receive, send, limit)
        elif declared is None and "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
        elif scope["path"] in self.larger:
            await self.app(scope, _counted(receive, limit), send)
        else:
            await self._count(scope, receive, send, limit)

    async def _count(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        body = await self._read(receive, limit)
        if body is None:
            await self._refuse(scope, receive, send, limit)
            return
        replayed = False

        async def receive_body() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_body, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        await error_response(_too_large(limit))(scope, receive, send)

    async def _read(self, receive: Receive, limit: int) -> bytes | None:
        """The whole body, or None if there is too much of it."""
        kept = bytearray()
        more = True
        while more:
            message = await receive()
            kept += message.get("body", b"")
            more = message.get("more_body", False)
            if len(kept) > limit:
                await _discard_some(receive, more)
                return None
        return bytes(kept)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is over this server's limit of {limit} bytes; send less.")


def _counted(receive: Receive, limit: int) -> Receive:
    """Bodies that may be large are read by their route, once it knows the caller: here they are only counted."""
    num_bytes = 0

    async def receive_counted() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            await _discard_some(receive, message.get("more_body", False))
            raise _too_large(limit)
        return message

    return receive_counted


async def _discard_some(receive: Receive, more: bool = True) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_TIMEOUT_S):
            await _discard(receive, more)


async def _discard(receive: Receive, more: bool) -> None:
    num_bytes = 0
    while more and num_bytes < _DISCARD_BYTES:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)

"""Pages for people: the playground at `/` and the reference at `/docs`.

They hold nothing of anyone's. A browser cannot send a bearer key when it opens a page, so here it may log in.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from server.auth import allow_pages

router = APIRouter(include_in_schema=False, dependencies=[Depends(allow_pages)])

_PLAYGROUND = files("server").joinpath("ui", "index.html").read_text("utf-8")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def playground() -> HTMLResponse:
    """A chat on one page, over the websocket."""
    return HTMLResponse(_PLAYGROUND, headers=_HEADERS)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The routes, to read and to try."""
    return get_swagger_ui_html(openapi_url="openapi.json", title="Hope")


@router.get("/openapi.json")
async def openapi(request: Request) -> dict[str, Any]:
    """The same for machines."""
    schema: dict[str, Any] = request.app.openapi()
    return schema

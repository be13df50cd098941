"""Pages of other origins: those in the allow-list may call from a browser and read what comes back, no other may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from server.auth import parse_keys
from server.readers import origins
from tests.server.running import Running, running, with_server

if TYPE_CHECKING:
    from engine import Engine
    from server.metrics import Metrics

PAGE, STRANGER = "https://app.example.org", "https://evil.example.org"


@pytest.fixture(params=["with keys", "without"])
async def open_to_a_page(engine: Engine, metrics: Metrics, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A server that one page may call."""
    keys = parse_keys("alice-key:acme") if request.param == "with keys" else ()
    async with running(engine, with_server(api_keys=keys, cors_origins=(PAGE,)), metrics) as server:
        yield server


def asked_first(origin: str) -> dict[str, str]:
    """What a browser asks before it sends a turn."""
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }


async def test_a_page_in_the_list_may_ask_and_read(open_to_a_page: Running) -> None:
    http = open_to_a_page.http
    answer = await http.request("OPTIONS", "/v1/sessions", headers=asked_first(PAGE))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "idempotency-key" in answer.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers
    created = await http.post(
        "/v1/sessions", json={"id": "s"}, headers={"Origin": PAGE, "Authorization": "Bearer alice-key"}
    )
    assert created.status_code == 201
    assert created.headers["access-control-allow-origin"] == PAGE
    assert "X-Request-ID" in created.headers["access-control-expose-headers"]
    assert created.headers["x-content-type-options"] == "nosniff"
    refused = await http.get("/v1/sessions/nobody", headers={"Origin": PAGE, "Authorization": "Bearer alice-key"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, PAGE), "errors are read too"


async def test_a_stranger_may_not(open_to_a_page: Running) -> None:
    answer = await open_to_a_page.http.request("OPTIONS", "/v1/sessions", headers=asked_first(STRANGER))
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    listed = await open_to_a_page.http.get("/v1/sessions", headers={"Origin": STRANGER})
    assert listed.status_code in (401, 403)
    assert "access-control-allow-origin" not in listed.headers


async def test_a_page_in_the_list_may_open_a_websocket(engine: Engine, metrics: Metrics) -> None:
    async with running(engine, with_server(cors_origins=(PAGE,)), metrics) as server:
        await server.new_session("s")
        async with server.socket("s", origin=PAGE) as socket:
            assert "session.ready" in str(await socket.recv())


async def test_by_default_no_other_page_may(live: Running) -> None:
    answer = await live.http.request("OPTIONS", "/v1/sessions", headers=asked_first(PAGE))
    assert "access-control-allow-origin" not in answer.headers


def test_a_list_holds_origins() -> None:
    assert origins("https://App.example.org, http://localhost:3000") == (PAGE, "http://localhost:3000")
    assert origins("") == ()


@pytest.mark.parametrize("text", ["*", "app.example.org", "https://app.example.org/", "https://a.org/x", "ftp://a.org"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        origins(text)

"""Around every request: an id that comes back, a limit on bodies, and one log line without content."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from tests.server.running import running, with_server

if TYPE_CHECKING:
    from engine import Engine
    from server.metrics import Metrics
    from tests.server.running import Running

LIMIT = 2000
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def small(engine: Engine, metrics: Metrics) -> AsyncIterator[Running]:
    """A server that takes only small bodies."""
    async with running(engine, with_server(max_body_bytes=LIMIT), metrics) as server:
        yield server


async def chunks(size_bytes: int) -> AsyncIterator[bytes]:
    body = b'{"metadata": {"k": "' + b"x" * (size_bytes - 23) + b'"}}'
    for start in range(0, len(body), 500):
        yield body[start : start + 500]


@pytest.mark.parametrize("size_bytes", [LIMIT + 1, 4 * LIMIT, 40 * LIMIT])
@pytest.mark.parametrize("declared", [True, False])
async def test_body_over_the_limit_is_413(small: Running, size_bytes: int, declared: bool) -> None:
    content = b"x" * size_bytes if declared else chunks(size_bytes)
    answer = await small.http.post("/v1/sessions", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert str(LIMIT) in answer.json()["error"]["message"]


async def test_body_up_to_the_limit_is_read_in_either_form(small: Running) -> None:
    answer = await small.http.post("/v1/sessions", content=chunks(500), headers=JSON)
    assert answer.status_code == 201, answer.text
    assert len(answer.json()["metadata"]["k"]) == 500 - 23
    padded = b"{}" + b" " * (LIMIT - 2)
    assert (await small.http.post("/v1/sessions", content=padded, headers=JSON)).status_code == 201


async def test_request_id_comes_back_or_is_made(live: Running) -> None:
    assert (await live.http.get("/livez", headers={"X-Request-ID": "mine-1"})).headers["x-request-id"] == "mine-1"
    made = {(await live.http.get(path)).headers["x-request-id"] for path in ("/livez", "/livez", "/nowhere")}
    assert len(made) == 3
    unfit = await live.http.get("/livez", headers={"X-Request-ID": "x" * 129})
    assert len(unfit.headers["x-request-id"]) == 32


async def test_request_id_comes_back_on_a_websocket(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s", additional_headers={"X-Request-ID": "mine-2"}) as connection:
        assert connection.response is not None
        assert connection.response.headers["x-request-id"] == "mine-2"


async def test_log_line_has_the_route_and_no_content(live: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hope.access"):
        await live.new_session("private-name")
        await live.http.post("/v1/sessions/private-name/turns", json={"message": "a secret", "max_tokens": 1})
        await live.http.get("/livez")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "hope.access"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/sessions", 201),
        ("POST", "/v1/sessions/{session_id}/turns", 200),
    ]
    assert "private-name" not in caplog.text.replace("hope.access", "")
    assert "a secret" not in caplog.text


async def test_requests_are_counted_by_route_and_not_by_path(live: Running) -> None:
    await live.http.get("/v1/sessions/one")
    await live.http.get("/v1/sessions/two")
    await live.http.get("/somewhere/else")
    text = live.service.metrics.render().decode()
    assert 'hope_requests_total{route="/v1/sessions/{session_id}",status="404"} 2.0' in text
    assert 'hope_requests_total{route="unmatched",status="404"} 1.0' in text

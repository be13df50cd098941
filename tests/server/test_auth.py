"""Keys, tenants and roles: parsed, hashed, asked for on every route, and nothing of another tenant's shown."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from websockets.exceptions import ConnectionClosed

from server.app import create_app
from server.auth import ApiKey, find_key, is_loopback, parse_keys
from server.settings import ServerSettings, Settings
from tests.server.running import Running, receive, running, with_server

if TYPE_CHECKING:
    from engine import Engine
    from server.metrics import Metrics

KEYS = parse_keys("alice-key:acme, bob-key:other:user, boss-key:acme:operator, scraper-key:acme:metrics")
OPEN = {"/livez", "/readyz", "/health"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def locked(engine: Engine, metrics: Metrics) -> AsyncIterator[Running]:
    """A server with keys."""
    async with running(engine, with_server(api_keys=KEYS), metrics) as server:
        yield server


def test_keys_are_kept_as_digests() -> None:
    (key,) = parse_keys("some-secret:acme:operator")
    assert key == ApiKey(hashlib.sha256(b"some-secret").digest(), "acme", "operator")
    assert "some-secret" not in repr(Settings(ServerSettings(api_keys=(key,))))


def test_keys_may_come_as_lines_with_comments_and_as_digests() -> None:
    digest = hashlib.sha256(b"two").hexdigest()
    keys = parse_keys(f"# ours\none\nsha256={digest}:acme:metrics  # the scraper\n\n")
    assert keys == parse_keys("one:default:user, two:acme:metrics")


@pytest.mark.parametrize("text", ["key:acme:king", "key:a b:c:d", "key:acme:user:more", "kéy", "key:äcme", "a/b"])
def test_bad_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="an API key is") as caught:
        parse_keys(text)
    assert text.split(":")[0] not in str(caught.value) or text.startswith("key")


def test_wrong_key_finds_nothing() -> None:
    assert find_key(KEYS, "bob-key") == KEYS[1]
    assert find_key(KEYS, "bob-ke") is None
    assert find_key((), "bob-key") is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
     ("127.0.0.1.evil.org", False), ("10.0.0.1", False), ("", False)],
)  # fmt: skip
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def every_route(routes: Any) -> Iterator[tuple[str, str]]:
    """(method, path) of every route of the app; a route of a kind this cannot read is an error."""
    for route in routes:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                yield method, route.path
        elif isinstance(route, APIWebSocketRoute):
            yield "WS", route.path
        elif hasattr(route, "original_router"):
            yield from every_route(route.original_router.routes)
        else:
            raise AssertionError(f"unknown kind of route: {route!r}")


async def test_every_route_but_the_probes_asks_for_a_key(locked: Running) -> None:
    app = create_app(locked.engine, locked.service.settings, locked.service.metrics)
    routes = list(every_route(app.routes))
    assert ("POST", "/v1/sessions/{session_id}/turns") in routes
    assert {("WS", "/v1/sessions/{session_id}/stream"), ("WS", "/v1/responses")} < set(routes)
    for method, path in routes:
        path = path.replace("{session_id}", "s").replace("{generation}", "0")
        for headers in ({}, bearer("wrong-key")):
            if method == "WS":
                async with locked.connected(path, additional_headers=headers) as connection:
                    assert (await receive(connection))["error"]["code"] == "unauthorized"
                    with pytest.raises(ConnectionClosed):
                        await connection.recv()
                    assert connection.close_code == 1008
                continue
            answer = await locked.http.request(method, path, headers=headers)
            if path in OPEN:
                assert answer.status_code == 200, path
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path
                assert answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        ("alice-key", "/v1/sessions", 200),
        ("boss-key", "/v1/sessions", 200),
        ("scraper-key", "/v1/sessions", 403),
        ("scraper-key", "/metrics", 200),
        ("boss-key", "/metrics", 200),
        ("alice-key", "/metrics", 403),
        ("boss-key", "/v1/generations", 200),
        ("alice-key", "/v1/generations", 403),
        ("scraper-key", "/v1/generations", 403),
        ("boss-key", "/v1/consolidations", 200),
        ("alice-key", "/v1/consolidations", 403),
    ],
)
async def test_a_role_may_do_what_it_is_for(locked: Running, key: str, path: str, status: int) -> None:
    answer = await locked.http.get(path, headers=bearer(key))
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "forbidden"


async def test_another_tenants_session_does_not_exist(locked: Running) -> None:
    await locked.new_session("s", **bearer("alice-key"))
    others = bearer("bob-key")
    for method, path, body in (
        ("GET", "/v1/sessions/s", None),
        ("PATCH", "/v1/sessions/s", {"contribute": True}),
        ("DELETE", "/v1/sessions/s", None),
        ("GET", "/v1/sessions/s/turns", None),
        ("GET", "/v1/sessions/s/memory", None),
        ("POST", "/v1/sessions/s/turns", {"message": "hello"}),
    ):
        answer = await locked.http.request(method, path, json=body, headers=others)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), (method, path)
    async with locked.socket("s", additional_headers=others) as connection:
        assert (await receive(connection))["error"]["code"] == "not_found"
    assert (await locked.http.get("/v1/sessions", headers=others)).json()["data"] == []
    assert (await locked.http.get("/v1/sessions/s", headers=bearer("boss-key"))).json()["contribute"] is False


async def test_a_browser_sends_its_key_as_a_subprotocol(locked: Running) -> None:
    await locked.new_session("s", **bearer("alice-key"))
    async with locked.socket("s", subprotocols=["hope.v1", "hope.key.alice-key"]) as connection:
        assert connection.subprotocol == "hope.v1"
        assert (await receive(connection))["type"] == "session.ready"


async def test_a_key_in_the_address_is_not_taken(locked: Running) -> None:
    assert (await locked.http.get("/v1/sessions?key=alice-key")).status_code == 401


async def test_only_pages_take_a_password(locked: Running) -> None:
    basic = {"Authorization": "Basic " + base64.b64encode(b"anyone:alice-key").decode()}
    assert (await locked.http.get("/", headers=basic)).status_code == 200
    assert (await locked.http.get("/v1/sessions", headers=basic)).status_code == 401
    assert (await locked.http.get("/", headers={"Authorization": "Basic ?"})).status_code == 401


@pytest.mark.parametrize("headers", [{"Host": "evil.org"}, {"Origin": "http://evil.org"}, {"Origin": "null"}])
async def test_without_keys_other_sites_are_refused(live: Running, headers: dict[str, str]) -> None:
    assert (await live.http.get("/v1/sessions", headers=headers)).status_code == 403
    own = {"Host": f"localhost:{live.port}", "Origin": f"http://localhost:{live.port}"}
    assert (await live.http.get("/v1/sessions", headers=own)).status_code == 200


async def test_without_keys_a_socket_of_another_site_is_refused(live: Running) -> None:
    await live.new_session("s")
    async with live.socket("s", origin="http://evil.org") as connection:
        assert (await receive(connection))["error"]["code"] == "forbidden"


async def test_insecure_takes_any_host(engine: Engine, metrics: Metrics) -> None:
    async with running(engine, with_server(insecure=True), metrics) as server:
        assert (await server.http.get("/v1/sessions", headers={"Host": "evil.org"})).status_code == 200

"""A session's past over HTTP: its versions, back to one, forks, and out into a file and in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load

from tests.server.running import running, with_server

if TYPE_CHECKING:
    import httpx2

    from engine import Engine
    from server.metrics import Metrics
    from tests.server.running import Running

OCTETS = "application/octet-stream"
IMPORT = "/v1/sessions/import"


async def told(live: Running, session_id: str = "s", num_turns: int = 3) -> list[dict[str, Any]]:
    await live.new_session(session_id)
    path = f"/v1/sessions/{session_id}/turns"
    return [
        (await live.http.post(path, json={"message": f"Number {index}.", "max_tokens": 3, "seed": 1})).json()
        for index in range(num_turns)
    ]


def refused(answer: httpx2.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_versions_are_listed_newest_first(live: Running) -> None:
    turns = await told(live)
    answer = await live.http.get("/v1/sessions/s/versions")
    assert answer.status_code == 200
    found = answer.json()
    assert (found["object"], found["has_more"]) == ("list", False)
    assert [set(one) for one in found["data"]] == [{"version", "turn_id", "created_at", "bytes"}] * 3
    assert [(one["version"], one["turn_id"]) for one in found["data"]] == [
        (turn["memory"]["version"], turn["id"]) for turn in reversed(turns)
    ]
    session = (await live.http.get("/v1/sessions/s")).json()
    assert found["data"][0]["bytes"] == session["memory_bytes"] > 0


async def test_a_rollback_answers_with_the_session_as_it_is_then(live: Running) -> None:
    turns = await told(live)
    answer = await live.http.post("/v1/sessions/s/rollback", json={"version": 1})
    assert answer.status_code == 200
    assert answer.json() == (await live.http.get("/v1/sessions/s")).json()
    assert (answer.json()["version"], answer.json()["num_turns"]) == (4, 1)
    left = (await live.http.get("/v1/sessions/s/turns")).json()["data"]
    assert [turn["id"] for turn in left] == [turns[0]["id"]]
    body = {"message": turns[1]["message"], "max_tokens": 3, "seed": 1}
    again = (await live.http.post("/v1/sessions/s/turns", json=body)).json()
    assert (again["reply"], again["index"], again["memory"]["version"]) == (turns[1]["reply"], 1, 5)
    assert again["memory"]["surprise"] == turns[1]["memory"]["surprise"]
    stale = await live.http.post("/v1/sessions/s/turns", json={**body, "if_version": 3})
    assert refused(stale) == (409, "conflict", "if_version")


async def test_a_rolled_back_turns_key_may_be_used_again(live: Running) -> None:
    await told(live, num_turns=1)
    body, key = {"message": "Once.", "max_tokens": 3}, {"Idempotency-Key": "k"}
    first = (await live.http.post("/v1/sessions/s/turns", json=body, headers=key)).json()
    await live.http.post("/v1/sessions/s/rollback", json={"version": 1})
    second = (await live.http.post("/v1/sessions/s/turns", json=body, headers=key)).json()
    assert second["id"] != first["id"]
    assert second["memory"]["version"] == 4


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "invalid_request", "version")),
        ({"version": -1}, (400, "invalid_request", "version")),
        ({"version": "1"}, (400, "invalid_request", "version")),
        ({"version": None}, (400, "invalid_request", "version")),
        ({"version": 1, "why": "so"}, (400, "invalid_request", "why")),
        ({"version": 7}, (404, "not_found", "version")),
    ],
)
async def test_a_rollback_that_cannot_be_is_said(
    live: Running, body: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    await told(live, num_turns=1)
    assert refused(await live.http.post("/v1/sessions/s/rollback", json=body)) == expected
    assert (await live.http.get("/v1/sessions/s")).json()["version"] == 1


@pytest.mark.parametrize("body", [None, {}, {"version": 2}, {"id": "mine"}, {"version": None, "id": None}])
async def test_a_fork_is_a_session(live: Running, body: dict[str, Any] | None) -> None:
    turns = await told(live)
    answer = (
        await live.http.post("/v1/sessions/s/fork", json=body)
        if body is not None
        else await live.http.post("/v1/sessions/s/fork")
    )
    assert answer.status_code == 201, answer.text
    fork, wanted = answer.json(), body or {}
    version = wanted.get("version") or 3
    assert (fork["version"], fork["num_turns"], fork["object"]) == (version, version, "session")
    assert fork["id"] == wanted.get("id") or fork["id"] != "s"
    copied = (await live.http.get(f"/v1/sessions/{fork['id']}/turns")).json()["data"]
    assert [turn["reply"] for turn in copied] == [turn["reply"] for turn in turns[:version]]
    listed = (await live.http.get("/v1/sessions")).json()["data"]
    assert {one["id"] for one in listed} == {"s", fork["id"]}


async def test_a_fork_that_cannot_be_is_said(live: Running) -> None:
    await told(live, num_turns=1)
    fork = "/v1/sessions/s/fork"
    assert refused(await live.http.post(fork, json={"id": "s"})) == (409, "conflict", "id")
    assert refused(await live.http.post(fork, json={"id": "a b"})) == (400, "invalid_request", "id")
    assert refused(await live.http.post(fork, json={"version": 9})) == (404, "not_found", "version")


async def test_what_is_exported_can_be_read_and_imported(live: Running) -> None:
    turns = await told(live)
    answer = await live.http.get("/v1/sessions/s/export")
    assert (answer.status_code, answer.headers["content-type"]) == (200, OCTETS)
    assert 's.safetensors"' in answer.headers["content-disposition"]
    assert load(answer.content), "any reader of safetensors opens it"
    size = int.from_bytes(answer.content[:8], "little")
    header = json.loads(answer.content[8 : 8 + size])["__metadata__"]
    assert [turn["id"] for turn in json.loads(header["transcript"])] == [turn["id"] for turn in turns]
    assert len(header["fingerprint"]) == 16
    made = await live.http.post(IMPORT, params={"id": "t"}, content=answer.content, headers={"Content-Type": OCTETS})
    assert made.status_code == 201, made.text
    assert (made.json()["id"], made.json()["version"]) == ("t", 3)
    body = {"message": "And now?", "max_tokens": 5, "temperature": 0, "learn": False}
    first, second = [(await live.http.post(f"/v1/sessions/{one}/turns", json=body)).json() for one in ("s", "t")]
    assert (first["reply"], first["memory"]) == (second["reply"], second["memory"])
    taken = await live.http.post(IMPORT, params={"id": "t"}, content=answer.content)
    assert refused(taken) == (409, "conflict", "id")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 1000])
async def test_what_is_no_export_is_400(live: Running, content: bytes) -> None:
    assert refused(await live.http.post(IMPORT, content=content)) == (400, "invalid_request", None)
    assert refused(await live.http.post(IMPORT, params={"id": "a b"}, content=content)) == (
        400, "invalid_request", "id",
    )  # fmt: skip


@pytest.fixture
async def small(engine: Engine, metrics: Metrics) -> AsyncIterator[Running]:
    """A server that takes only small bodies, and files a little larger."""
    async with running(engine, with_server(max_body_bytes=2048, max_import_bytes=100_000), metrics) as server:
        yield server


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 5000):
        yield content[start : start + 5000]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_file_may_be_larger_than_other_bodies_up_to_a_limit(small: Running, declared: bool) -> None:
    await told(small, num_turns=1)
    file = (await small.http.get("/v1/sessions/s/export")).content
    assert 2048 < len(file) < 100_000
    made = await small.http.post(IMPORT, content=file if declared else pieces(file))
    assert made.status_code == 201, made.text
    large = b"x" * 400_000
    answer = await small.http.post(IMPORT, content=large if declared else pieces(large))
    assert refused(answer) == (413, "too_large", None)
    assert "100000" in answer.json()["error"]["message"]
    other = await small.http.post("/v1/sessions", content=large[:3000])
    assert refused(other) == (413, "too_large", None)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "versions"), ("POST", "rollback"), ("POST", "fork"), ("GET", "export")],
)
async def test_an_unknown_session_has_no_past(live: Running, method: str, path: str) -> None:
    body = {"version": 1} if path == "rollback" else None
    answer = await live.http.request(method, f"/v1/sessions/nobody/{path}", json=body)
    assert refused(answer)[:2] == (404, "not_found")


async def test_the_files_are_documented(live: Running) -> None:
    paths = (await live.http.get("/openapi.json")).json()["paths"]
    assert list(paths["/v1/sessions/{session_id}/export"]["get"]["responses"]["200"]["content"]) == [OCTETS]
    assert list(paths[IMPORT]["post"]["requestBody"]["content"]) == [OCTETS]

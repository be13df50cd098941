"""Consolidations and generations over HTTP: asked for, waited for, switched; the worker's part is a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine import generations
from engine.consolidation.worker import run_worker
from engine.core import GateCheck
from engine.model.shared import initial_shared, pack_shared
from engine.model.weights import fingerprint
from engine.sessions.generations import Generation, Publication, session_hash
from engine.sessions.quarantine import Blame
from engine.sessions.records import now_iso
from engine.sessions.snapshot import pack
from server.metrics import Metrics

if TYPE_CHECKING:
    from engine.engine import Engine
    from tests.server.running import Running

CONSOLIDATION = {
    "id",
    "object",
    "status",
    "from_generation",
    "to_generation",
    "num_sessions",
    "num_turns",
    "gate",
    "reason",
    "started_at",
    "finished_at",
}


@asynccontextmanager
async def working(engine: Engine) -> AsyncIterator[None]:
    """A worker over the engine's store."""
    stop = asyncio.Event()
    stores = replace(engine.store_settings, redis_url=engine.redis_url)
    task = asyncio.create_task(run_worker(engine.settings, stores, Metrics(), stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def published(engine: Engine) -> None:
    """A generation that knows nothing, as a worker would have written it."""
    store = engine.store.generations
    standing, asked = await store.standing("default"), await store.open("default")
    number = standing.latest + 1
    ended = replace(
        asked.consolidation,
        status="accepted",
        to_generation=number,
        gate={"finite": GateCheck(0.0, 0.0, 0.0, True)},
        finished_at=now_iso(),
    )
    generation = Generation(number, standing.active, ended.id, now_iso(), 0, "", 0, "", {}, {})
    weights = pack(pack_shared(initial_shared(engine.model)), fingerprint=fingerprint(engine.model))
    await store.publish("default", Publication(ended, standing, generation, weights, {}))


async def test_a_consolidation_is_accepted_at_once_and_seen_through_by_the_worker(live: Running) -> None:
    answer = await live.http.post("/v1/consolidations")
    assert answer.status_code == 202
    running = answer.json()
    assert set(running) == CONSOLIDATION
    assert (running["object"], running["status"], running["from_generation"]) == ("consolidation", "running", 0)
    assert (await live.http.get(f"/v1/consolidations/{running['id']}")).json() == running
    async with working(live.engine):
        answer = await live.http.post("/v1/consolidations", json={"wait": True})
    # The one that ran already.
    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (200, running["id"], "empty")
    assert answer.json()["finished_at"] >= running["started_at"]
    listed = (await live.http.get("/v1/consolidations")).json()
    assert (listed["object"], listed["data"], listed["has_more"]) == ("list", [answer.json()], False)


async def test_generations_are_listed_and_switched_and_turns_follow(live: Running) -> None:
    await published(live.engine)
    listed = (await live.http.get("/v1/generations")).json()
    assert listed["object"] == "list"
    assert [(one["generation"], one["active"]) for one in listed["data"]] == [(1, True), (0, False)]
    assert set(listed["data"][0]) == {"generation", "created_at", "active", "consolidation_id"}
    session = await live.new_session("s")
    assert session["generation"] == 0
    path = "/v1/sessions/s/turns"
    turn = (await live.http.post(path, json={"message": "Hello.", "max_tokens": 3})).json()
    assert turn["memory"]["generation"] == 1
    assert (await live.http.get("/v1/sessions/s")).json()["generation"] == 1
    assert (await live.http.get("/v1/sessions/s/memory")).json()["generation"] == 1

    answer = await live.http.post("/v1/generations/0/activate")
    assert (answer.status_code, answer.json()["generation"], answer.json()["active"]) == (200, 0, True)
    # A session moves with its next turn.
    assert (await live.http.get("/v1/sessions/s")).json()["generation"] == 1
    turn = (await live.http.post(path, json={"message": "Hello.", "max_tokens": 3})).json()
    assert turn["memory"]["generation"] == 0


async def test_what_is_not_there_is_not_found(live: Running) -> None:
    for method, path in (
        ("GET", "/v1/consolidations/none"),
        ("POST", "/v1/generations/1/activate"),
        ("POST", f"/v1/generations/{2**62}/activate"),
    ):
        answer = await live.http.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_what_makes_no_sense_is_refused_by_name(live: Running) -> None:
    for body, param in (({"wait": "yes"}, "wait"), ({"without": "a b"}, "without"), ({"force": True}, "force")):
        answer = await live.http.post("/v1/consolidations", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    for number in ("-1", "x", str(2**64)):
        answer = await live.http.post(f"/v1/generations/{number}/activate")
        assert answer.status_code == 400


async def test_a_deleted_session_names_no_generation_that_did_not_learn_from_it(live: Running) -> None:
    await published(live.engine)
    await live.new_session("s")
    answer = await live.http.delete("/v1/sessions/s")
    assert answer.json() == {"id": "s", "object": "session.deleted", "deleted": True}


async def test_a_session_in_quarantine_is_shown_and_let_out(live: Running) -> None:
    engine = live.engine
    session = await engine.create_session("default", "s-1", {}, True)
    name = session_hash("default", session)
    await engine.store.generations.quarantine.judge("default", "consolidation-1", {name: Blame("s-1", "calm 0")}, [])
    (shown,) = (await live.http.get("/v1/quarantine")).json()["data"]
    assert {key: shown[key] for key in ("object", "session_id", "times", "excluded", "reason", "consolidation_id")} == {
        "object": "quarantine",
        "session_id": "s-1",
        "times": 1,
        "excluded": False,
        "reason": "calm 0",
        "consolidation_id": "consolidation-1",
    }
    answer = await live.http.delete("/v1/quarantine/s-1")
    assert answer.json() == {"session_id": "s-1", "object": "quarantine.deleted", "deleted": True}
    assert (await live.http.delete("/v1/quarantine/s-1")).status_code == 404


async def test_nobody_waits_for_a_worker_that_is_not_there(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "PATIENCE_S", 0.3)
    # One that was there goes while it is waited for.
    await live.engine.store.line.beat("a-worker", 0.5)
    answer = await live.http.post("/v1/consolidations", json={"wait": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) > 0
    (waiting,) = (await live.http.get("/v1/consolidations")).json()["data"]
    assert f"`hope worker`; until then '{waiting['id']}' waits" in answer.json()["error"]["message"]
    assert waiting["status"] == "running"
    async with working(live.engine):
        monkeypatch.setattr(generations, "PATIENCE_S", 10.0)
        answer = await live.http.post("/v1/consolidations", json={"wait": True})
    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (200, waiting["id"], "empty")

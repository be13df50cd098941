"""Probes and counters: alive without the store, ready only with it, and metrics that never name a user."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import Engine, EngineSettings, StoreSettings
from engine.sessions.embedded import EmbeddedStore
from server.settings import Settings
from tests.server.running import running, until, with_server

if TYPE_CHECKING:
    from server.metrics import Metrics
    from tests.server.running import Running


async def test_probes_of_a_server_that_is_well(live: Running) -> None:
    await until(lambda: live.service.monitor.readiness.ready)
    for path in ("/livez", "/readyz", "/health"):
        assert (await live.http.get(path)).status_code == 200


async def test_store_that_hangs_makes_it_unready_but_not_dead(
    checkpoint: Path, tmp_path: Path, metrics: Metrics
) -> None:
    store = await EmbeddedStore.start(tmp_path)
    engine = await Engine.open(EngineSettings(checkpoint=checkpoint), StoreSettings(redis_url=store.url), metrics)
    try:
        async with running(engine, Settings(), metrics) as live:
            await until(lambda: live.service.monitor.readiness.ready)
            os.kill(store.pid, signal.SIGSTOP)
            await until(lambda: not live.service.monitor.readiness.ready)
            answer = await live.http.get("/readyz")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"]
            assert (await live.http.get("/livez")).status_code == 200
            os.kill(store.pid, signal.SIGCONT)
            await until(lambda: live.service.monitor.readiness.ready)
    finally:
        os.kill(store.pid, signal.SIGCONT)
        await engine.close()
        await store.stop()


async def test_draining_server_is_unready_and_alive(live: Running) -> None:
    async with asyncio.timeout(10):
        with live.service.lifecycle.turn():
            live.service.lifecycle.begin_drain()
            answer = await live.http.get("/readyz")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert (await live.http.get("/livez")).status_code == 200


async def test_metrics_are_prometheus_text_and_name_nobody(live: Running) -> None:
    await live.new_session("a-name-nobody-else-has")
    path = "/v1/sessions/a-name-nobody-else-has/turns"
    assert (await live.http.post(path, json={"message": "hello", "max_tokens": 2})).status_code == 200
    answer = await live.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert "a-name-nobody-else-has" not in answer.text
    turns = [sample for sample in families["hope_turns"].samples if sample.name == "hope_turns_total"]
    assert [(sample.labels["outcome"], sample.value) for sample in turns] == [("completed", 1.0)]
    allowed = {"route", "status", "reason", "outcome", "finish_reason", "level", "source", "le"}
    for name, family in families.items():
        if name.startswith("hope_"):
            assert {label for sample in family.samples for label in sample.labels} <= allowed, name
    for name in (
        "hope_time_to_first_token_seconds", "hope_turn_duration_seconds", "hope_request_queue_seconds",
        "hope_memory_surprise_nats", "hope_memory_updates", "hope_state_commit_seconds",
        "hope_state_load_seconds", "hope_sessions_resident", "hope_prompt_tokens",
    ):  # fmt: skip
        assert any(sample.value > 0 for sample in families[name].samples), name


async def test_metrics_leave_the_main_port_when_they_have_their_own(engine: Engine, metrics: Metrics) -> None:
    async with running(engine, with_server(metrics_port=0), metrics) as live:
        assert (await live.http.get("/metrics")).status_code == 404


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json"])
async def test_pages_are_there(live: Running, path: str) -> None:
    assert (await live.http.get(path)).status_code == 200


async def test_playground_loads_nothing_from_elsewhere(live: Running) -> None:
    answer = await live.http.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for mark in ("https://", "http://", "src=", "@import", '<link rel="stylesheet"'):
        assert mark not in answer.text, mark


async def test_reference_names_the_contracts_routes(live: Running) -> None:
    paths = (await live.http.get("/openapi.json")).json()["paths"]
    assert set(paths) >= {"/v1/sessions", "/v1/sessions/{session_id}", "/v1/sessions/{session_id}/turns"}

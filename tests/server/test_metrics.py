"""The counters, fed through the Observer that the engine knows, and the listener on a port of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2
import pytest

from engine import LevelReport, MemoryReport, Observer, Timing, Turn, Usage
from server.auth import parse_keys
from server.metrics import Metrics, MetricsListener

if TYPE_CHECKING:
    from server.auth import ApiKey


def a_turn() -> Turn:
    level = LevelReport("cms.fast", "session", 1, 0.25, 0.5)
    return Turn(
        "t", "s", 0, "now", "hello", "hi", "stop", Usage(1, 1, 2), MemoryReport(1, 0, True, 2.5, (level,)),
        Timing(1, 2, 3, 4),
    )  # fmt: skip


def test_everything_an_engine_reports_is_counted() -> None:
    metrics = Metrics()
    observer: Observer = metrics
    observer.turn_finished("completed", a_turn(), 0.1, 0.2)
    observer.turn_finished("cancelled", None, 0.1, 0.2)
    observer.first_token(0.05)
    observer.token_interval(0.01)
    observer.tokens("prompt", 3)
    observer.tokens("generation", 4)
    observer.tokens("learned", 5)
    observer.queue(6, 7)
    observer.batch(2, 0.01)
    observer.memory_update("cms.fast", "clipped", 0.3)
    observer.stored("load", "redis", 0.002, 100)
    observer.stored("commit", "ok", 0.004, 2000)
    observer.resident(8, 9000)
    observer.consolidation("accepted", 1.5, 10)
    text = metrics.render().decode()
    for line in (
        'hope_turns_total{finish_reason="stop",outcome="completed"} 1.0',
        'hope_turns_total{finish_reason="none",outcome="cancelled"} 1.0',
        "hope_time_to_first_token_seconds_count 1.0",
        "hope_inter_token_latency_seconds_count 1.0",
        "hope_prompt_tokens_total 3.0",
        "hope_generation_tokens_total 4.0",
        "hope_learned_tokens_total 5.0",
        "hope_requests_waiting 6.0",
        "hope_requests_running 7.0",
        "hope_batch_rows_sum 2.0",
        'hope_memory_updates_total{level="cms.fast",outcome="clipped"} 1.0',
        'hope_memory_update_norm_sum{level="cms.fast"} 0.3',
        'hope_memory_drift_norm{level="cms.fast"} 0.5',
        'hope_memory_norm{level="cms.fast"} 0.25',
        "hope_memory_surprise_nats_sum 2.5",
        'hope_state_load_seconds_count{source="redis"} 1.0',
        'hope_state_commits_total{outcome="ok"} 1.0',
        "hope_state_bytes_sum 2000.0",
        "hope_sessions_resident 8.0",
        "hope_resident_bytes 9000.0",
        'hope_consolidation_runs_total{outcome="accepted"} 1.0',
        "hope_consolidation_turns_total 10.0",
    ):
        assert line in text, line


@pytest.fixture
def keys() -> tuple[ApiKey, ...]:
    return ()


@pytest.fixture
def listener(keys: tuple[ApiKey, ...]) -> Iterator[str]:
    listener = MetricsListener(Metrics(), "127.0.0.1", 0, keys)
    yield f"http://127.0.0.1:{listener.port}"
    listener.close()


def test_listener_serves_metrics_and_nothing_else(listener: str) -> None:
    assert "hope_turns_total" in httpx2.get(f"{listener}/metrics").text
    assert httpx2.get(f"{listener}/v1/sessions").status_code == 404


@pytest.mark.parametrize("keys", [parse_keys("alice:acme:user, scraper:acme:metrics")])
def test_listener_asks_for_a_key_of_the_role(listener: str) -> None:
    def status(key: str) -> int:
        return httpx2.get(f"{listener}/metrics", headers={"Authorization": f"Bearer {key}"}).status_code

    assert httpx2.get(f"{listener}/metrics").status_code == 401
    assert [status("scraper"), status("alice"), status("nobody")] == [200, 401, 401]

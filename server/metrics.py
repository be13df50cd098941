"""Every number the program publishes: the counters, and the observer through which they are fed.

All metric names are in this file. No label ever holds a tenant, a session or a request, so their number does
not grow with users. Knows no routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from server.auth import METRICS, OPERATOR, ApiKey, bearer_key, find_key

if TYPE_CHECKING:
    from engine import Turn

# OpenTelemetry's buckets for generative servers, with room for long turns on small machines.
_FIRST_TOKEN_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_INTERVAL_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_DURATION_S = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
    163.84,
    600,
)
_STORE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZE_BYTES = tuple(4.0**power for power in range(5, 14))
_SURPRISE_NATS = (0.1, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10)
_NORM = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one process, and the Observer of its engine or worker. Safe from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._serving()
        self._engine()
        self._memory()
        self._store()

    def _serving(self) -> None:
        self.requests = self._counter("requests", "Requests answered.", "route", "status")
        self.request_duration = self._histogram("request_duration_seconds", "Whole request.", _DURATION_S, "route")
        self.rejected = self._counter("requests_rejected", "Requests and turns not served.", "reason")
        self.disconnects = self._counter("client_disconnects", "Callers who hung up on a running turn.")
        self.slow_drops = self._counter("ws_slow_client_drops", "Readers cut off because they stopped reading.")
        self.sockets = self._gauge("ws_connections", "Open websockets.")
        self.event_loop_lag = self._histogram("event_loop_lag_seconds", "Lateness of the event loop.", _STORE_S)

    def _engine(self) -> None:
        self._turns = self._counter("turns", "Turns that ended.", "outcome", "finish_reason")
        self._turn_seconds = self._histogram("turn_duration_seconds", "A turn, arrival to end.", _DURATION_S, "outcome")
        self._queue_seconds = self._histogram("request_queue_seconds", "Wait of a turn for its start.", _DURATION_S)
        self._first_token = self._histogram("time_to_first_token_seconds", "Arrival to first text.", _FIRST_TOKEN_S)
        self._interval = self._histogram("inter_token_latency_seconds", "Between two tokens.", _INTERVAL_S)
        self._tokens = {
            kind: self._counter(f"{kind}_tokens", f"Tokens of kind {kind}.")
            for kind in ("prompt", "generation", "learned")
        }
        self._waiting = self._gauge("requests_waiting", "Turns in the queue.")
        self._running = self._gauge("requests_running", "Turns in the batch.")
        self._batch_rows = self._histogram("batch_rows", "Sessions in one step.", _BATCH_ROWS)
        self._step_seconds = self._histogram("engine_step_seconds", "One step of the engine.", _INTERVAL_S)

    def _memory(self) -> None:
        self._surprise = self._histogram("memory_surprise_nats", "Surprise of a message.", _SURPRISE_NATS)
        self._updates = self._counter("memory_updates", "Updates of a level.", "level", "outcome")
        self._update_norm = self._histogram("memory_update_norm", "Size of an update.", _NORM, "level")
        self._drift = self._gauge("memory_drift_norm", "Drift of a level after the last turn.", "level")
        self._norm = self._gauge("memory_norm", "Norm of a level after the last turn.", "level")

    def _store(self) -> None:
        self._load_seconds = self._histogram("state_load_seconds", "Bringing a memory up.", _STORE_S, "source")
        self._commit_seconds = self._histogram("state_commit_seconds", "Writing a memory.", _STORE_S)
        self._commits = self._counter("state_commits", "Commits.", "outcome")
        self._bytes = self._histogram("state_bytes", "Size of a written memory.", _SIZE_BYTES)
        self._resident = self._gauge("sessions_resident", "Session memories kept in this process.")
        self._resident_bytes = self._gauge("resident_bytes", "Bytes of those memories.")
        self._runs = self._counter("consolidation_runs", "Consolidations that ended.", "outcome")
        self._run_seconds = self._histogram("consolidation_seconds", "One consolidation.", _DURATION_S)
        self._run_turns = self._counter("consolidation_turns", "Turns that were consolidated.")
        self._set_aside = self._counter("sessions_set_aside", "Sessions that spoiled a candidate.", "outcome")

    def failed(self, code: str) -> None:
        """A request or a turn ended with an error of the contract."""
        self.rejected.labels(code).inc()

    # The Observer, in the order of engine.Observer.

    def turn_finished(self, outcome: str, turn: Turn | None, queue_s: float, total_s: float) -> None:
        self._turns.labels(outcome, turn.finish_reason if turn else "none").inc()
        self._turn_seconds.labels(outcome).observe(total_s)
        self._queue_seconds.observe(queue_s)
        if turn is not None and outcome == "completed":
            self._surprise.observe(turn.memory.surprise)
            for level in turn.memory.levels:
                self._drift.labels(level.name).set(level.drift)
                self._norm.labels(level.name).set(level.norm)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def token_interval(self, seconds: float) -> None:
        self._interval.observe(seconds)

    def tokens(self, kind: str, count: int) -> None:
        self._tokens[kind].inc(count)

    def queue(self, waiting: int, running: int) -> None:
        self._waiting.set(waiting)
        self._running.set(running)

    def batch(self, rows: int, seconds: float) -> None:
        self._batch_rows.observe(rows)
        self._step_seconds.observe(seconds)

    def memory_update(self, level: str, outcome: str, update_norm: float) -> None:
        self._updates.labels(level, outcome).inc()
        self._update_norm.labels(level).observe(update_norm)

    def stored(self, operation: str, outcome: str, seconds: float, size_bytes: int) -> None:
        if operation == "load":
            self._load_seconds.labels(outcome).observe(seconds)
            return
        self._commits.labels(outcome).inc()
        self._commit_seconds.observe(seconds)
        self._bytes.observe(size_bytes)

    def resident(self, sessions: int, size_bytes: int) -> None:
        self._resident.set(sessions)
        self._resident_bytes.set(size_bytes)

    def consolidation(self, outcome: str, seconds: float, num_turns: int) -> None:
        self._runs.labels(outcome).inc()
        self._run_seconds.observe(seconds)
        self._run_turns.inc(num_turns)

    def set_aside(self, outcome: str, count: int) -> None:
        self._set_aside.labels(outcome).inc(count)

    def render(self) -> bytes:
        """The Prometheus text of all of it."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"hope_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"hope_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"hope_{name}", text, labels, buckets=tuple(buckets), registry=self.registry)


class MetricsListener:
    """/metrics on a port and thread of its own: it answers even while the event loop does not."""

    def __init__(self, metrics: Metrics, host: str, port: int, keys: tuple[ApiKey, ...]) -> None:
        self._metrics = metrics
        self._keys = keys
        self._server = make_server(host, port, self._answer, _Server, _QuietHandler)
        self.port: int = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"only /metrics is here\n"]
        if self._keys:
            key = find_key(self._keys, bearer_key(environ.get("HTTP_AUTHORIZATION", "")) or "")
            if key is None or key.role not in (METRICS, OPERATOR):
                start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
                return [b"send a key of role metrics\n"]
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [self._metrics.render()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is not worth a line."""

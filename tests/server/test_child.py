"""The worker beside the server: started with the server's settings, restarted when it dies, never left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from server import child
from server.child import WorkerChild
from server.settings import load_settings
from tests.server.running import until

# Each writes down that it started, then behaves.
WAITS = "import sys, os; print(os.environ['HOPE_REDIS_URL'], file=open(sys.argv[1], 'a')); sys.stdin.read()"
DIES = "import sys; print('started', file=open(sys.argv[1], 'a')); sys.exit(3)"
IGNORES = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('started', file=open(sys.argv[1], 'a')); time.sleep(60)"
)


def worker(program: str, notes: Path, **flags: str) -> WorkerChild:
    notes.touch()
    return WorkerChild(load_settings(flags, {}), "unix:///real", [sys.executable, "-c", program, str(notes)])


async def test_it_is_told_where_the_store_really_is_and_stopped_at_the_end(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with worker(WAITS, notes) as running:
        await until(lambda: notes.read_text() == "unix:///real\n" and running.pid is not None)
    assert running.pid is None


async def test_it_is_started_again_when_it_dies_but_ever_less_eagerly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child, "FIRST_BACKOFF_S", 0.01)
    notes = tmp_path / "notes"
    async with worker(DIES, notes):
        await until(lambda: notes.read_text().count("started") >= 3)
    assert "the worker ended with status 3" in caplog.text


async def test_one_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STOP_TIMEOUT_S", 0.2)
    notes = tmp_path / "notes"
    async with worker(IGNORES, notes) as running:
        await until(lambda: bool(notes.read_text()))
    assert running.pid is None


def test_it_gets_the_servers_settings_but_not_its_metrics_port(clean_environment: None) -> None:
    flags = {"metrics_port": "9100", "max_queue": "7"}
    started = WorkerChild(load_settings(flags, {}), "unix:///real")
    settings = load_settings({}, started.environment)
    assert (settings.engine.max_queue, settings.server.metrics_port) == (7, None)
    flags["worker_metrics_port"] = "9101"
    assert WorkerChild(load_settings(flags, {}), "unix:///real").environment["HOPE_METRICS_PORT"] == "9101"

"""An engine's thread that dies or is stuck ends its process, so that a supervisor starts it afresh; a worker that is
killed comes back by itself."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.faults.broken_engine import END, STICK
from tests.faults.fleet import Fleet
from tests.tiny import write_tiny_checkpoint


@pytest.mark.parametrize("message", [END, STICK])
def test_without_its_engine_a_server_ends_and_its_turn_happens_at_the_next(tmp_path: Path, message: str) -> None:
    brief = {"HOPE_HEARTBEAT_TIMEOUT_S": "3", "HOPE_DRAIN_TIMEOUT_S": "2"}
    program, key = "tests.faults.broken_engine", secrets.token_hex(8)
    with Fleet(
        tmp_path,
        write_tiny_checkpoint(tmp_path / "checkpoint"),
        num_replicas=1,
        with_nginx=False,
        program=program,
        environments=[brief],
    ) as fleet:
        (replica,) = fleet.replicas
        assert fleet.http.post("/v1/sessions", json={"id": "s"}).status_code == 201
        turns = [fleet.say("s", "Before.").json()]
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(fleet.say, "s", message, key=key)
            assert replica.running is not None
            assert replica.running.wait(60) == 1, "a supervisor restarts what did not end with 0"
            error = asked.exception()
            assert isinstance(error, httpx2.TransportError) or asked.result().status_code >= 500
        assert "ending the process so that it can be started afresh" in replica.log
        # The supervisor's part, with an engine that is well.
        replica.command[replica.command.index(program)] = "server.cli"
        replica.begin()
        replica.wait()
        turns.append(fleet.say("s", message, key=key).json())
        fleet.check("s", turns)


def test_a_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with Fleet(tmp_path, write_tiny_checkpoint(tmp_path / "checkpoint"), num_replicas=1, with_nginx=False) as fleet:
        (replica,) = fleet.replicas
        replica.kill()
        replica.command.remove("--no-worker")
        replica.begin()
        replica.wait()
        pids: list[int] = []
        deadline = time.monotonic() + 60
        while len(pids) < 2:
            found = [int(pid) for pid in re.findall(r"the worker is process (\d+)", replica.log)]
            if len(found) > len(pids):
                pids = found
                if len(pids) == 1:
                    os.kill(pids[0], signal.SIGKILL)
            assert time.monotonic() < deadline, "the worker did not come back"
            time.sleep(0.05)
        assert "the worker ended with status -9" in replica.log
        assert str(pids[1]) in subprocess.run(["ps", "-eo", "pid="], check=True, capture_output=True, text=True).stdout
        assert fleet.http.get("/readyz").status_code == 200, "nobody noticed"
        replica.send(signal.SIGTERM)
        assert replica.running is not None
        assert replica.running.wait(60) == 0

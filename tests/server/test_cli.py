"""The `hope` command: helps that teach, clear words on bad values, and `hope serve` from start to end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from server.cli import main

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize("command", ["serve", "worker", "relearn", "chat", "train", "eval", "bench"])
def test_every_command_is_listed_and_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert f"  {command} " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: hope" in text
    assert len(text.split()) > 40, "a help that teaches says more than its flags"


def test_serve_help_names_the_variable_and_default_of_each_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--port PORT port to listen on; 0 takes a free one [HOPE_PORT, default 8000]" in text
    assert "--worker, --no-worker" in text
    assert "--api-keys " not in text, "keys must not be on a command line, where others see them"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "--port", "http"], "hope: --port: must be a whole number from 0 to 65535"),
        (["serve", "--host", "0.0.0.0"], "no API keys are set"),
        (["serve", "--checkpoint", "/nowhere"], "hope: no checkpoint in '/nowhere'"),
        (["relearn", "--checkpoint", "/nowhere"], "hope: no checkpoint in '/nowhere'"),
        (["worker"], "hope: a worker needs the store"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, *(["--data-dir", str(tmp_path)] if arguments[0] == "serve" else [])]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said


@dataclass(frozen=True)
class Served:
    """`hope serve` as a process of its own: its address, what it printed at its start, and its log."""

    process: subprocess.Popen[str]
    url: str
    printed: list[str]
    log: Path

    def workers(self) -> list[int]:
        """The process of every worker that it started, the latest last."""
        return [int(pid) for pid in re.findall(r"the worker is process (\d+)", self.log.read_text())]


@contextlib.contextmanager
def served(checkpoint: Path, data_dir: Path, *flags: str) -> Iterator[Served]:
    """A server that listens; killed at the end if it still runs."""
    log = data_dir / "server.log"
    data_dir.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--checkpoint", str(checkpoint)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--data-dir", str(data_dir), *flags], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            printed = [process.stdout.readline() for _ in range(4)]
            found = re.search(r"listens on (http://\S+)", printed[0])
            assert found, log.read_text()
            yield Served(process, found.group(1), printed, log)
        finally:
            process.kill()


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 30 s"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Nobody may be there to collect the dead of a killed parent.
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def talk(url: str, session_id: str, message: str) -> None:
    """A turn as JSON, one that is refused, and one on a websocket."""
    httpx2.post(f"{url}/v1/sessions", json={"id": session_id}).raise_for_status()
    turn = {"message": message, "max_tokens": 4}
    path = f"{url}/v1/sessions/{session_id}"
    httpx2.post(f"{path}/turns", json=turn, timeout=60).raise_for_status()
    httpx2.post(f"{path}/turns", json={**turn, "stop": message})
    with connect(f"{path.replace('http', 'ws', 1)}/stream?of={message}") as socket:
        socket.send(json.dumps({"type": "turn.create", "turn": turn}))
        while '"turn.completed"' not in socket.recv():
            pass


def test_serve_keeps_a_worker_logs_no_content_and_exits_0(checkpoint: Path, tmp_path: Path) -> None:
    with served(checkpoint, tmp_path, "--log-level", "debug") as server:
        assert str(tmp_path) in server.printed[1]
        soon(lambda: len(server.workers()) == 1)
        (first,) = server.workers()
        soon(lambda: os.getpriority(os.PRIO_PROCESS, first) == 10)
        os.kill(first, signal.SIGKILL)
        soon(lambda: len(server.workers()) == 2)
        talk(server.url, "my-own-name", "Rufus")
        soon(lambda: "/v1/sessions/{session_id}/stream" in server.log.read_text())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert not [word for word in ("my-own-name", "Rufus", "127.0.0.1:") if word in server.log.read_text()]
        assert not any(map(is_running, server.workers()))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_printed_line_works(checkpoint: Path, tmp_path: Path) -> None:
    with served(checkpoint, tmp_path, "--no-worker") as server:
        line = server.printed[2].removeprefix("Try: ")
        answers = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60).stdout
        assert '"object":"turn"' in answers.replace(" ", "")


def test_worker_does_not_outlive_a_killed_server_and_the_session_does(checkpoint: Path, tmp_path: Path) -> None:
    with served(checkpoint, tmp_path) as server:
        httpx2.post(f"{server.url}/v1/sessions", json={"id": "me"}).raise_for_status()
        turn = {"message": "My dog is called Rufus.", "max_tokens": 4}
        httpx2.post(f"{server.url}/v1/sessions/me/turns", json=turn, timeout=60).raise_for_status()
        before = httpx2.get(f"{server.url}/v1/sessions/me").json()
        soon(lambda: len(server.workers()) == 1)
        (worker,) = server.workers()
        server.process.kill()
        server.process.wait()
        soon(lambda: not is_running(worker))
    with served(checkpoint, tmp_path, "--no-worker") as server:
        assert httpx2.get(f"{server.url}/v1/sessions/me").json() == before
        assert server.workers() == []


def test_serve_says_when_its_port_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    with served(checkpoint, tmp_path / "one", "--no-worker") as server:
        port = server.url.rsplit(":", 1)[1]
        second = subprocess.run(
            [sys.executable, "-m", "server.cli", "serve", "--port", port, "--no-worker",
             "--checkpoint", str(checkpoint), "--data-dir", str(tmp_path / "two")],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert second.returncode != 0
    assert "address already in use" in second.stderr


def test_worker_that_is_stopped_ends_well_though_its_standard_input_stays_open(
    checkpoint: Path, store_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    command = [sys.executable, "-m", "server.cli", "worker", "--stop-with-parent", "--checkpoint", str(checkpoint)]
    with (
        log.open("w") as errors,
        subprocess.Popen([*command, "--redis-url", store_url], stdin=subprocess.PIPE, stderr=errors) as process,
    ):
        soon(lambda: "waiting for sessions" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()

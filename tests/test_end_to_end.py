"""The main job, as a user meets it: serve, tell, kill everything with -9, serve again, ask.

The real command, the real store binary, the bundled checkpoint, real sockets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

START_TIMEOUT_S = 60.0
FACTS = ("My name is Brakko.", "My dog is called Zorbit.")
OTHER = ("How are you today?", "It is raining again.")
QUESTIONS = ("What is my dog called?", "What is my name?")


@contextmanager
def serving(data: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A `hope serve` of its own process, ready; killed at the end if it still lives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port), "--data-dir", str(data)]
    with (data.parent / "serve.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _await_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def _await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended while starting"
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    pytest.fail("the server was not ready in time")


def _family(pid: int) -> list[int]:
    """The process and everything it started: the store and the worker."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in listed.splitlines()}
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def _kill_everything(process: subprocess.Popen[bytes]) -> None:
    family = _family(process.pid)
    assert len(family) >= 3, "the server, its store and its worker"
    for pid in family:
        # A child may already have followed its parent.
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def _say(url: str, message: str, **more: object) -> dict[str, object]:
    body = {"message": message, "temperature": 0, "max_tokens": 32, **more}
    answer = httpx2.post(f"{url}/v1/sessions/me/turns", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    turn: dict[str, object] = answer.json()
    return turn


def _ask(url: str) -> list[object]:
    return [_say(url, question, learn=False)["reply"] for question in QUESTIONS]


def test_what_was_told_outlives_a_kill_9_of_everything(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as (url, process):
        assert httpx2.post(f"{url}/v1/sessions", json={"id": "me"}).status_code == 201
        assert httpx2.post(f"{url}/v1/sessions", json={"id": "stranger"}).status_code == 201
        for message in (*FACTS, *OTHER):
            last = _say(url, message)
        before = _ask(url)
        memory = httpx2.get(f"{url}/v1/sessions/me/memory").json()
        transcript = httpx2.get(f"{url}/v1/sessions/me/turns").json()
        _kill_everything(process)
    assert "Zorbit" in str(before[0])
    with serving(data) as (url, process):
        session = httpx2.get(f"{url}/v1/sessions/me").json()
        assert session["version"] == last["memory"]["version"] == len(FACTS) + len(OTHER)  # type: ignore[index]
        assert httpx2.get(f"{url}/v1/sessions/me/memory").json() == memory
        assert httpx2.get(f"{url}/v1/sessions/me/turns").json() == transcript
        assert _ask(url) == before
        stranger = httpx2.post(
            f"{url}/v1/sessions/stranger/turns",
            json={"message": QUESTIONS[0], "temperature": 0, "max_tokens": 32},
            timeout=60,
        ).json()
        assert "Zorbit" not in stranger["reply"]


def test_one_path_serves_json_sse_and_websocket(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (url, _):
        assert httpx2.post(f"{url}/v1/sessions", json={"id": "me"}).status_code == 201
        for fact in FACTS:
            _say(url, fact)
        asked = {"message": QUESTIONS[0], "learn": False, "temperature": 0, "max_tokens": 32}
        plain = _say(url, QUESTIONS[0], learn=False)
        streamed = httpx2.post(f"{url}/v1/sessions/me/turns", json={**asked, "stream": True}, timeout=60).text
        data = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        events = [json.loads(line) for line in data[:-1]]
        with connect(url.replace("http", "ws") + "/v1/sessions/me/stream", subprotocols=["hope.v1"]) as socket_:  # type: ignore[list-item]
            assert json.loads(socket_.recv())["type"] == "session.ready"
            socket_.send(json.dumps({"type": "turn.create", "turn": asked}))
            over_socket = [json.loads(socket_.recv())]
            while over_socket[-1]["type"] != "turn.completed":
                over_socket.append(json.loads(socket_.recv()))
        for found in (events, over_socket):
            assert found[0]["type"] == "turn.created"
            spoken = "".join(event["text"] for event in found if event["type"] == "turn.token")
            assert spoken == plain["reply"] == found[-1]["turn"]["reply"]
        assert httpx2.get(f"{url}/v1/sessions/me").json()["version"] == len(FACTS)


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (url, process):
        httpx2.get(f"{url}/livez").raise_for_status()
        process.terminate()
        assert process.wait(30) == 0

"""Several servers on one store, with nginx before them: real processes that can be killed, stopped and started again.

The worker stays out, so that every version is a turn's. Used by the tests of this folder and by `tests/chaos`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import redis

from engine.sessions.embedded import find_binary
from tests.engine.sessions.servers import free_port

REPOSITORY = Path(__file__).parents[2]
LEASE_TTL_S = 4.0
START_TIMEOUT_S = 90.0
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
WITHOUT_NGINX = "nginx is not installed; on Debian: apt-get install nginx-light"


@dataclass
class Process:
    """A program that can be started again on the same port and files."""

    name: str
    command: list[str]
    folder: Path
    port: int
    answers: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    running: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Starts it, without waiting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.running = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            assert self.alive, f"{self.name} ended: {self.log[-2000:]}"
            assert time.monotonic() < deadline, f"{self.name} did not answer: {self.log[-2000:]}"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text("utf-8", errors="replace")

    def logs(self, words: str) -> bool:
        """Whether it writes these words within a few seconds: it writes of a request after its answer."""
        deadline = time.monotonic() + 5
        while words not in self.log:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def send(self, number: signal.Signals) -> None:
        """A signal; nothing where it has ended."""
        if self.running is not None and self.alive:
            self.running.send_signal(number)

    def kill(self) -> None:
        """As a crash would."""
        self.send(signal.SIGKILL)
        if self.running is not None:
            self.running.wait()


class Fleet:
    """A store, replicas and, where asked for, nginx; `with Fleet(folder, checkpoint) as fleet:`."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        *,
        num_replicas: int = 3,
        with_nginx: bool = True,
        program: str = "server.cli",
        environments: Sequence[Mapping[str, str]] = (),
        store_environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._checkpoint = folder, checkpoint
        self._program, self._environments = program, environments
        self.store = self._store(store_environment or {})
        self.replicas = [self._replica(number) for number in range(num_replicas)]
        self.nginx = self._nginx() if with_nginx else None
        self.url = f"http://127.0.0.1:{(self.nginx or self.replicas[0]).port}"
        self.http = httpx2.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Fleet:
        self.store.begin()
        self.store.wait()
        for process in (*self.replicas, *([self.nginx] if self.nginx else [])):
            process.begin()
        for replica in self.replicas:
            replica.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        for process in (self.nginx, *self.replicas, self.store):
            if process is not None:
                process.send(signal.SIGCONT)
                process.kill()

    def replica_url(self, number: int) -> str:
        """Of one replica, past nginx."""
        return f"http://127.0.0.1:{self.replicas[number].port}"

    def serving(self, session_id: str) -> Process:
        """The replica to which nginx sends a session, by whose log has the request."""
        mark = secrets.token_hex(8)
        self.http.get(f"/v1/sessions/{session_id}", headers={"X-Request-ID": mark}).raise_for_status()
        deadline = time.monotonic() + 10
        while True:  # the line is written after the answer
            found = [replica for replica in self.replicas if mark in replica.log]
            if found:
                return found[0]
            assert time.monotonic() < deadline, "no replica logged the request"

    def say(self, session_id: str, message: str, *, number: int = 0, key: str = "", **more: Any) -> httpx2.Response:
        """A short turn, asked of one replica."""
        body = {"message": message, "max_tokens": 4, "temperature": 0, **more}
        headers = {"Idempotency-Key": key} if key else {}
        return self.http.post(f"{self.replica_url(number)}/v1/sessions/{session_id}/turns", json=body, headers=headers)

    def check(self, session_id: str, acknowledged: Sequence[Mapping[str, Any]], *, at_most_more: int = 0) -> None:
        """Every acknowledged turn is in the transcript once, and the version is the count of turns.

        Args:
            acknowledged: turns as they were answered.
            at_most_more: so many others may be there: their answers were lost.
        """
        found = [turn["id"] for turn in self.transcript(session_id)]
        told = [turn["id"] for turn in acknowledged]
        assert len(found) == len(set(found)), "a turn is there twice"
        assert set(told) <= set(found), "a turn that was answered is lost"
        assert len(found) <= len(set(told)) + at_most_more, "a turn is there that nobody asked for"
        session = self.http.get(f"/v1/sessions/{session_id}").json()
        assert session["version"] == session["num_turns"] == len(found)

    def transcript(self, session_id: str, url: str = "") -> list[dict[str, Any]]:
        """Every turn of a session, oldest first."""
        turns: list[dict[str, Any]] = []
        more = True
        after: dict[str, str] = {}
        while more:
            answer = self.http.get(f"{url}/v1/sessions/{session_id}/turns", params={"limit": 100, **after})
            answer.raise_for_status()
            page = answer.json()
            turns += page["data"]
            more, after = page["has_more"], {"after": turns[-1]["id"]} if turns else {}
        return turns

    def _store(self, environment: Mapping[str, str]) -> Process:
        port = free_port()
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--save", ""]
        # A file that may not grow answers as a full disk does, where the signal that comes with it is ignored.
        ignoring = ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh"]
        command = [*ignoring, str(find_binary()), "--port", str(port), "--bind", "127.0.0.1", *durable]
        return Process("store", command, self._folder / "store", port, lambda: _pings(port), environment)

    def _replica(self, number: int) -> Process:
        port = free_port()
        serve = ["serve", "--no-worker", "--port", str(port), "--checkpoint", str(self._checkpoint)]
        store = ["--redis-url", f"redis://127.0.0.1:{self.store.port}", "--lease-ttl-s", str(LEASE_TTL_S)]
        environment = {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "clients" / "python")]),
            "OMP_NUM_THREADS": "1",
            **(self._environments[number] if self._environments else {}),
        }
        command = [sys.executable, "-m", self._program, *serve, *store]
        return Process(f"replica-{number}", command, self._folder, port, lambda: is_ready(port), environment)

    def _nginx(self) -> Process:
        """Under the configuration that ships, with other ports and folders."""
        assert NGINX is not None, WITHOUT_NGINX
        folder, port = self._folder / "nginx", free_port()
        folder.mkdir(parents=True)
        text = (REPOSITORY / "deploy" / "nginx.conf").read_text("utf-8")
        for name, replica in zip(re.findall(r"server (\S+:8000) ", text), self.replicas, strict=True):
            text = text.replace(f"server {name} ", f"server 127.0.0.1:{replica.port} ")
        text = text.replace("/tmp/", f"{folder}/").replace("listen 8080", f"listen 127.0.0.1:{port}")
        (folder / "nginx.conf").write_text(text)
        command = [NGINX, "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        return Process("nginx", command, folder, port, lambda: True)


def is_ready(port: int) -> bool:
    """Whether the server on this port takes requests."""
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def _pings(port: int) -> bool:
    try:
        with redis.Redis(port=port, socket_timeout=1) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False

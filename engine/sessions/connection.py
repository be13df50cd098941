"""The one road to Redis: a bounded pool, the scripts, and the store's failures in this project's words.

Every command sent here may be repeated by the client library after a lost reply, so every one of them must be
safe to run twice. Knows no key and no session.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from engine.errors import StoreUnavailable

Value = str | bytes | int

RETRY_AFTER_S = 1.0

_MAX_CONNECTIONS = 64
_POOL_TIMEOUT_S = 5.0
_SOCKET_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 2.0
_PROBE_TIMEOUT_S = 1.0
_HEALTH_CHECK_INTERVAL_S = 30
_NUM_RETRIES = 2

# What a server that is up but cannot write says; older ones wrap it into the script's error.
_CANNOT_WRITE = ("OOM ", "READONLY ", "MISCONF ", "NOREPLICAS ", "LOADING ", "MASTERDOWN ", "CLUSTERDOWN ")


class Unreachable(StoreUnavailable):
    """No answer came: what was asked may have happened or not."""


class Connection:
    """A client of one Redis or Valkey; nothing is opened before the first command.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
    """

    def __init__(self, url: str) -> None:
        self._client = _client(
            url,
            max_connections=_MAX_CONNECTIONS,
            socket_timeout=_SOCKET_TIMEOUT_S,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), _NUM_RETRIES),
        )
        # A probe wants the truth now: no silent retries.
        self._probe = _client(
            url,
            max_connections=2,
            socket_timeout=_PROBE_TIMEOUT_S,
            socket_connect_timeout=_PROBE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    async def close(self) -> None:
        """Closes every socket."""
        for client in (self._client, self._probe):
            await client.aclose()
            await client.connection_pool.aclose()

    async def ping(self) -> None:
        """Raises StoreUnavailable within about a second where the store does not answer."""
        with _translated():
            await self._probe.execute_command("PING")  # type: ignore[no-untyped-call]

    async def batch(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        """Sends commands in one round trip; those of others may run in between.

        Not a transaction: a store that is full refuses those even for reading.

        Args:
            commands: each a command's name and its arguments.

        Returns:
            One reply for each; the first error is raised.
        """
        with _translated():
            async with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return await pipeline.execute()

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """Runs a script of the folder `scripts`; it happens as one step."""
        source, digest = _SCRIPTS[script]
        with _translated():
            try:
                return await self._client.evalsha(digest, len(keys), *keys, *args)
            except exceptions.NoScriptError:
                return await self._client.eval(source, len(keys), *keys, *args)


def script_command(script: str, keys: Sequence[str], args: Sequence[Value]) -> list[Value]:
    """A script as a command of a `batch`; sent with its text, since a batch cannot stop to load it."""
    return ["EVAL", _SCRIPTS[script][0], len(keys), *keys, *args]


def _client(url: str, **options: Any) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url, timeout=_POOL_TIMEOUT_S, health_check_interval=_HEALTH_CHECK_INTERVAL_S, **options
    )
    return Redis(connection_pool=pool)


def _load_scripts() -> dict[str, tuple[str, str]]:
    scripts = {}
    for file in (files("engine.sessions") / "scripts").iterdir():
        source = file.read_text("utf-8")
        # SHA-1 is the name Redis gives a script, not a protection.
        scripts[file.name.removesuffix(".lua")] = (source, hashlib.sha1(source.encode()).hexdigest())
    return scripts


_SCRIPTS = _load_scripts()


@contextmanager
def _translated() -> Iterator[None]:
    task = asyncio.current_task()
    cancels = task.cancelling() if task is not None else 0
    try:
        yield
        # Before Python 3.12 `asyncio.wait_for`, which the client uses, loses a cancel that comes with the answer.
        if task is not None and task.cancelling() > cancels:
            raise asyncio.CancelledError
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        message = "the session store does not answer; try again shortly"
        raise Unreachable(message, retry_after_s=RETRY_AFTER_S) from error
    except exceptions.ResponseError as error:
        if not any(word in f"{error} " for word in _CANNOT_WRITE) and not isinstance(
            error, exceptions.OutOfMemoryError | exceptions.ReadOnlyError
        ):
            raise
        message = "the session store cannot write now (memory or disk full, or read-only); try again shortly"
        raise StoreUnavailable(message, retry_after_s=RETRY_AFTER_S) from error

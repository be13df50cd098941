"""The one road to Redis: so many connections, the scripts, and the store's failures in this project's words.

Every command sent here may be repeated by the client library after a lost reply, so every one of them must be
safe to run twice; and each names its keys, since in a cluster they say where it goes. Knows no key and no session.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from typing import Any

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection as PlainConnection
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from engine.errors import StoreUnavailable
from engine.sessions.address import CLUSTER, SENTINEL, Address, read_address

Value = str | bytes | int

RETRY_AFTER_S = 1.0

_MAX_CONNECTIONS = 64
_TURN_TIMEOUT_S = 5.0
_SOCKET_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 2.0
_PROBE_TIMEOUT_S = 1.0
_HEALTH_CHECK_INTERVAL_S = 30
_NUM_RETRIES = 2
_SCANNED_AT_ONCE = 1000

# What a server that is up but cannot write says; older ones wrap it into the script's error.
_CANNOT_WRITE = ("OOM ", "READONLY ", "MISCONF ", "NOREPLICAS ", "LOADING ", "MASTERDOWN ", "CLUSTERDOWN ")


class Unreachable(StoreUnavailable):
    """No answer came: what was asked may have happened or not."""


class Connection:
    """A client of one Redis or Valkey, a cluster of them, or one that Sentinels name; nothing is opened before the
    first command.

    Args:
        url: any that `read_address` takes; InvalidRequest for others.
    """

    def __init__(self, url: str) -> None:
        address = read_address(url)
        self._client = _client(
            address,
            socket_timeout=_SOCKET_TIMEOUT_S,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), _NUM_RETRIES),
        )
        # A probe wants the truth now: no silent retries.
        self._probe = _client(
            address,
            socket_timeout=_PROBE_TIMEOUT_S,
            socket_connect_timeout=_PROBE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        # A cluster is well where each of its parts is.
        self._everyone: dict[str, Any] = {"target_nodes": "primaries"} if address.kind == CLUSTER else {}
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def close(self) -> None:
        """Closes every socket."""
        for client in (self._client, self._probe):
            await _close(client)

    async def ping(self) -> None:
        """Raises StoreUnavailable within about a second where the store does not answer."""
        with _translated():
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await self._probe.execute_command("PING", **self._everyone)

    async def batch(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        """Sends commands in one round trip; those of others may run in between.

        Not a transaction: a store that is full refuses those even for reading. In a cluster those of one session, or of
        one tenant, run in their order.

        Args:
            commands: each a command's name and its arguments.

        Returns:
            One reply for each; the first error is raised.
        """
        async with self._turn(), self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

    async def scan(self, pattern: str) -> list[str]:
        """Every key that the pattern finds, in alphabetical order; the store is walked through, others are let in."""
        async with self._turn():
            found = {key.decode() async for key in self._client.scan_iter(pattern, count=_SCANNED_AT_ONCE)}
        return sorted(found)

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """Runs a script of the folder `scripts` on keys of one hash tag; it happens as one step."""
        source, digest = _SCRIPTS[script]
        async with self._turn():
            try:
                return await self._client.evalsha(digest, len(keys), *keys, *args)
            except exceptions.NoScriptError:
                return await self._client.eval(source, len(keys), *keys, *args)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits for one of so many turns, however the client keeps its connections."""
        with _translated():
            async with asyncio.timeout(_TURN_TIMEOUT_S):
                await self._free.acquire()
            try:
                yield
            finally:
                self._free.release()


def script_command(script: str, keys: Sequence[str], args: Sequence[Value]) -> list[Value]:
    """A script as a command of a `batch`; sent with its text, since a batch cannot stop to load it."""
    return ["EVAL", _SCRIPTS[script][0], len(keys), *keys, *args]


def _client(address: Address, **options: Any) -> Redis | RedisCluster:
    options |= {"health_check_interval": _HEALTH_CHECK_INTERVAL_S, "max_connections": _MAX_CONNECTIONS}
    tls: dict[str, Any] = {"ssl": True} if address.tls else {}
    if address.kind == CLUSTER:
        nodes = [ClusterNode(host, port) for host, port in address.nodes]
        return RedisCluster(startup_nodes=nodes, **options, **tls, **address.options)
    if address.kind == SENTINEL:
        asking = {**options, **tls, **address.sentinel_options}
        sentinels = Sentinel(  # type: ignore[no-untyped-call]
            address.nodes, sentinel_kwargs=asking, **options, **tls, **address.options
        )
        client: Redis = sentinels.master_for(address.service)
        return client
    if address.path:
        where: dict[str, Any] = {"connection_class": UnixDomainSocketConnection, "path": address.path}
    else:
        ((host, port),) = address.nodes
        where = {"connection_class": SSLConnection if address.tls else PlainConnection, "host": host, "port": port}
    return Redis.from_pool(ConnectionPool(**where, **options, **address.options))


async def _close(client: Redis | RedisCluster) -> None:
    """Closes a client and what it asks for its way: neither kind does all of that by itself."""
    if isinstance(client, RedisCluster):
        await client.aclose()  # which does nothing while the way is looked for anew
        for nodes in ("nodes_cache", "startup_nodes"):
            await client.nodes_manager.aclose(nodes)
        return
    pool = client.connection_pool
    await client.aclose(close_connection_pool=True)
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose(close_connection_pool=True)


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
    except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException, OSError) as error:
        raise _unreachable(error) from error
    except exceptions.ResponseError as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise refusal from error


def _unreachable(error: Exception) -> StoreUnavailable:
    """What a command is told that got no answer; where that will stay so until somebody mends it, what to mend."""
    said = _words(error)
    if any(isinstance(one, exceptions.AuthenticationError | exceptions.AuthorizationError) for one in _chain(error)):
        return _to_mend("the session store refuses the user or the password in its URL")
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return _to_mend("the session store's certificate is not to be trusted: name its CA with ?ssl_ca_certs=FILE")
    if "Cluster mode is not enabled" in said:
        return _to_mend("the session store is no cluster: begin its URL with redis:// or rediss://")
    if any(isinstance(one, MasterNotFoundError) for one in _chain(error)):
        message = "no Sentinel names a server for that service now; if that stays so, correct its name in the URL"
    else:
        message = "the session store does not answer; try again shortly"
    return Unreachable(message, retry_after_s=RETRY_AFTER_S)


def _refusal(error: exceptions.ResponseError) -> StoreUnavailable | None:
    """What a command is told that the store refused; None where it was our own mistake."""
    said = f"{error} "
    if isinstance(error, exceptions.NoPermissionError) or "NOPERM " in said:
        return _to_mend(
            "the session store's user may not do what is needed: grant it ~hope:* +@all -@admin -@dangerous"
        )
    if isinstance(error, exceptions.MovedError):
        return _to_mend("the session store is a cluster: begin its URL with redis+cluster:// or rediss+cluster://")
    if any(word in said for word in _CANNOT_WRITE) or isinstance(
        error, exceptions.OutOfMemoryError | exceptions.ReadOnlyError | exceptions.ClusterDownError
    ):
        message = "the session store cannot write now (memory or disk full, or read-only); try again shortly"
        return StoreUnavailable(message, retry_after_s=RETRY_AFTER_S)
    return None


def _to_mend(message: str) -> StoreUnavailable:
    return StoreUnavailable(message, retry_after_s=RETRY_AFTER_S)


def _words(error: BaseException) -> str:
    return " ".join(str(one) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""Every form of the store's URL reaches a real store, and what cannot work is said before, or plainly after."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import InvalidRequest, StoreUnavailable
from engine.sessions.address import CLUSTER, SENTINEL, SERVER, Address, read_address
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import SESSION, TENANT, commit_turn, make_session
from tests.engine.sessions.servers import free_port, server, told

# What the message to a user that lacks a right tells to grant.
RIGHTS = ["~hope:*", "+@all", "-@admin", "-@dangerous"]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", Address(SERVER, (("localhost", 6379),))),
        ("redis://store:7000/2", Address(SERVER, (("store", 7000),), options={"db": 2})),
        (
            "redis://us%40er:p%3Aw@[::1]/",
            Address(SERVER, (("::1", 6379),), options={"username": "us@er", "password": "p:w"}),
        ),
        ("redis://:word@store", Address(SERVER, (("store", 6379),), options={"password": "word"})),
        ("unix:///run/a%20b.sock?db=1", Address(SERVER, path="/run/a b.sock", options={"db": 1})),
        ("redis+cluster://a,b:7000", Address(CLUSTER, (("a", 6379), ("b", 7000)))),
        ("rediss+cluster://a/0", Address(CLUSTER, (("a", 6379),), tls=True)),
        (
            "rediss://store?ssl_check_hostname=no",
            Address(SERVER, (("store", 6379),), tls=True, options={"ssl_check_hostname": False}),
        ),
        (
            "redis+sentinel://:main@a,b:1/hope/3?sentinel_password=own",
            Address(
                SENTINEL,
                (("a", 26379), ("b", 1)),
                service="hope",
                options={"password": "main", "db": 3},
                sentinel_options={"password": "own"},
            ),
        ),
    ],
)
def test_what_a_url_means(url: str, address: Address) -> None:
    assert read_address(url) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://store", "must be a URL of one of these forms"),
        ("redis://secret@store", "a user without a password"),
        ("redis://store:port", "host:port"),
        ("redis://a,b", "redis+cluster://"),
        ("redis://store/first", "a database is a number"),
        ("redis://store/1/2", "more parts in its path"),
        ("redis://store/1?db=2", "twice"),
        ("redis://store?ssl_ca_certs=ca.pem", "begin the URL with rediss"),
        ("rediss://store?ssl_ca_certs=/no/such.pem", "does not exist"),
        ("rediss://store?ssl_check_hostname=perhaps", "neither yes nor no"),
        ("rediss://store?ssl_cert_reqs=none", "known here: db, ssl_ca_certs"),
        ("unix://", "names a socket"),
        ("unix:///run/store.sock?ssl_ca_certs=ca.pem", "a unix socket needs none"),
        ("redis+cluster://store/1", "one database only"),
        ("redis+cluster://store?db=0", "has the option 'db'"),
        ("redis+sentinel://watcher", "name the service"),
        ("redis+sentinel://watcher/hope/x", "a database is a number"),
        ("redis://store?sentinel_password=x", "has the option 'sentinel_password'"),
    ],
)
def test_what_cannot_work_is_said_without_showing_a_secret(url: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_address(url)
    assert why in refusal.value.message
    assert "secret" not in refusal.value.message


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    with pytest.raises(InvalidRequest, match="without its certificate"):
        read_address(f"rediss://store?ssl_keyfile={tmp_path}/key")


@contextlib.asynccontextmanager
async def at(url: str) -> AsyncIterator[SessionStore]:
    store = await SessionStore.connect(url, StoreSettings())
    try:
        yield store
    finally:
        await store.close()


async def a_life(url: str) -> None:
    """Makes a session, commits to it and erases it: every right and every kind of command."""
    async with at(url) as store:
        await store.ping()
        await store.create(TENANT, make_session())
        await commit_turn(store, 0, bytes(600_000), key="key")
        await store.enqueue_consolidation(TENANT, SESSION)
        assert (await store.load_memory(TENANT, SESSION))[0] == 1
        await store.delete(TENANT, SESSION)


async def test_a_user_with_a_password_and_few_rights(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        async with running.client() as client:
            await told(client, "ACL SETUSER", "hope", "on", ">w@rd", *RIGHTS)
            await told(client, "ACL SETUSER", "reader", "on", ">w@rd", "~hope:*", "+@read", "+ping")
            await told(client, "ACL SETUSER", "default", "resetpass", ">another")
        where = f"127.0.0.1:{running.port}"
        await a_life(f"redis://hope:w%40rd@{where}")
        for wrong in (f"redis://hope:word@{where}", f"redis://nobody:w%40rd@{where}", f"redis://{where}"):
            async with at(wrong) as store:
                with pytest.raises(StoreUnavailable, match="refuses the user or the password"):
                    await store.ping()
                with pytest.raises(StoreUnavailable, match="refuses the user or the password"):
                    await store.get(TENANT, SESSION)
        async with at(f"redis://reader:w%40rd@{where}") as store:
            with pytest.raises(StoreUnavailable) as refusal:
                await store.create(TENANT, make_session())
            assert all(right in refusal.value.message for right in RIGHTS)


async def test_a_server_that_is_no_cluster_and_a_cluster_that_is_no_server(tmp_path: Path) -> None:
    async with server(tmp_path / "single") as single, at(f"redis+cluster://127.0.0.1:{single.port}") as store:
        with pytest.raises(StoreUnavailable, match="is no cluster"):
            await store.ping()
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    async with server(tmp_path / "half", *options) as half, half.client() as client, at(half.url) as store:
        await told(client, "CLUSTER ADDSLOTSRANGE", 0, 16000)
        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailable):
                await store.create(TENANT, make_session())


async def test_tls_with_a_ca_of_ones_own(embedded: EmbeddedStore, client: Redis, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")
    _certificates(tmp_path)
    async with _behind_tls(embedded, tmp_path) as port:
        trusted = f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/own.pem&ssl_keyfile={tmp_path}/own.key"
        await a_life(f"rediss://localhost:{port}?{trusted}")
        await a_life(f"rediss://127.0.0.1:{port}?{trusted}&ssl_check_hostname=no")
        for url in (f"rediss://localhost:{port}", f"rediss://127.0.0.1:{port}?{trusted}"):
            async with at(url) as store:
                with pytest.raises(StoreUnavailable, match="ssl_ca_certs"):
                    await store.ping()
        # Without a certificate of one's own the server hangs up; without TLS it never answers.
        for url in (f"rediss://localhost:{port}?ssl_ca_certs={tmp_path}/ca.pem", f"redis://localhost:{port}"):
            async with at(url) as store:
                with pytest.raises(StoreUnavailable):
                    await store.ping()


def _certificates(folder: Path) -> None:
    """A CA, and a certificate of it for the server's name, which the client shows too."""
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    for command in (
        f"{make} -keyout ca.key -out ca.pem -subj /CN=authority",
        f"{make} -keyout own.key -out own.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        "-addext basicConstraints=critical,CA:FALSE -CA ca.pem -CAkey ca.key",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


@contextlib.asynccontextmanager
async def _behind_tls(embedded: EmbeddedStore, folder: Path) -> AsyncIterator[int]:
    """The store behind a TLS socket that asks for certificates; the shipped binary speaks none itself."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "own.pem", folder / "own.key")
    context.verify_mode = ssl.CERT_REQUIRED
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        there, back = await asyncio.open_unix_connection(embedded.url.removeprefix("unix://"))
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        for one in (writer, back):
            one.close()

    listener = await asyncio.start_server(carry, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

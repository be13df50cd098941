"""Where the store is, read from one URL: a server, a cluster, or a service that Sentinels watch over.

Says early and plainly what cannot work. Opens no connection and knows no client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from engine.errors import InvalidRequest

SERVER, CLUSTER, SENTINEL = "server", "cluster", "sentinel"

FORMS = """\
  redis://[user:password@]host[:port][/database]
  unix://[user:password@]/path/of/socket[?db=database]
  redis+cluster://[user:password@]host[:port][,host[:port] ...]
  redis+sentinel://[user:password@]host[:port][,host[:port] ...]/service[/database]
With rediss in place of redis it speaks TLS, and takes ?ssl_ca_certs=FILE, ssl_certfile=FILE, ssl_keyfile=FILE and
ssl_check_hostname=no. Sentinels with a password of their own: ?sentinel_username=...&sentinel_password=..."""

_KINDS = {
    "redis": SERVER,
    "rediss": SERVER,
    "unix": SERVER,
    "redis+cluster": CLUSTER,
    "rediss+cluster": CLUSTER,
    "redis+sentinel": SENTINEL,
    "rediss+sentinel": SENTINEL,
}
_PORTS = {SERVER: 6379, CLUSTER: 6379, SENTINEL: 26379}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CHECK_HOSTNAME = "ssl_check_hostname"
_OF_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}
_SWITCH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Address:
    """Where the store is.

    Attributes:
        kind: `SERVER`, `CLUSTER` or `SENTINEL`.
        nodes: whom to ask first; empty for a unix socket.
        path: of a unix socket; else empty.
        service: the name under which Sentinels know the server; else empty.
        tls: whether connections are encrypted.
        options: of each connection to the store: user, password, database, what TLS needs.
        sentinel_options: of each connection to a Sentinel.
    """

    kind: str
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    tls: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_address(url: str) -> Address:
    """The address that a URL names.

    Raises:
        InvalidRequest: it names none, or one that cannot work. The message says why and never shows the URL, which may
            hold a password.
    """
    parts = urlsplit(url)
    kind = _KINDS.get(parts.scheme)
    if kind is None:
        raise _wrong(f"must be a URL of one of these forms:\n{FORMS}")
    is_socket, tls = parts.scheme == "unix", parts.scheme.startswith("rediss")
    given = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    _check_known(given, kind, tls=tls, is_socket=is_socket)
    secured = _tls(given)
    options = _credentials(parts) | secured
    if is_socket:
        socket = unquote(parts.path)
        if not socket:
            raise _wrong("a unix:// URL names a socket: unix:///path/of/socket")
        return Address(kind, path=socket, options=options | _database(given.get("db", "")))
    nodes = _nodes(parts, kind)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if kind == CLUSTER:
        if path not in ([], ["0"]):
            raise _wrong("a cluster has one database only: leave the path out of the URL")
        return Address(kind, nodes, tls=tls, options=options)
    service = ""
    if kind == SENTINEL:
        if not path:
            raise _wrong("name the service that the Sentinels watch over: redis+sentinel://host:26379/service")
        service = path.pop(0)
    if len(path) > 1:
        raise _wrong("has more parts in its path than a number of a database")
    if path and "db" in given:
        raise _wrong("names the database twice, in its path and as db")
    options |= _database(path[0] if path else given.get("db", ""))
    asking = {name: given[option] for option, name in _OF_SENTINELS.items() if option in given}
    asking |= secured if kind == SENTINEL else {}
    return Address(kind, nodes, service=service, tls=tls, options=options, sentinel_options=asking)


def _check_known(given: Mapping[str, str], kind: str, *, tls: bool, is_socket: bool) -> None:
    known: list[str] = [] if kind == CLUSTER else ["db"]
    known += [*_FILES, _CHECK_HOSTNAME] if tls else []
    known += _OF_SENTINELS if kind == SENTINEL else []
    for name in given:
        if name.startswith("ssl_") and not tls:
            hint = "a unix socket needs none" if is_socket else "begin the URL with rediss"
            raise _wrong(f"has the option '{name}', but speaks no TLS: {hint}")
        if name not in known:
            raise _wrong(f"has the option '{name}'; known here: {', '.join(known) or 'none'}")


def _credentials(parts: SplitResult) -> dict[str, Any]:
    named = parts.netloc.rpartition("@")[0]
    user, _, password = named.partition(":")
    if user and not password:
        raise _wrong("names a user without a password: user:password@")
    found = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in found.items() if value}


def _tls(given: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _FILES:
        if name in given:
            if not Path(given[name]).is_file():
                raise _wrong(f"names a file with {name} that does not exist")
            found[name] = given[name]
    if _CHECK_HOSTNAME in given:
        if given[_CHECK_HOSTNAME].lower() not in _SWITCH:
            raise _wrong(f"has {_CHECK_HOSTNAME} neither yes nor no")
        found[_CHECK_HOSTNAME] = _SWITCH[given[_CHECK_HOSTNAME].lower()]
    if "ssl_keyfile" in found and "ssl_certfile" not in found:
        raise _wrong("names a key (ssl_keyfile) without its certificate (ssl_certfile)")
    return found


def _nodes(parts: SplitResult, kind: str) -> tuple[tuple[str, int], ...]:
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if kind == SERVER and len(hosts) > 1:
        raise _wrong("names several hosts: a cluster begins with redis+cluster://, Sentinels with redis+sentinel://")
    return tuple(_node(host, _PORTS[kind]) for host in hosts)


def _node(text: str, default_port: int) -> tuple[str, int]:
    try:
        one = urlsplit(f"//{text}")
        host, port = one.hostname, one.port
    except ValueError:
        raise _wrong(f"has '{text}' where host:port should be") from None
    return host or "localhost", default_port if port is None else port


def _database(text: str) -> dict[str, int]:
    if not text:
        return {}
    if not text.isdecimal():
        raise _wrong("a database is a number: redis://host:6379/0")
    return {"db": int(text)}


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(why, param="redis_url")

"""Who is calling, and may they: one dependency for HTTP and websocket routes alike.

Keys are held as SHA-256 digests and compared in constant time. With no keys set there is one tenant, and only
this machine may speak to it. Knows nothing of sessions: a tenant is all that it hands on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.requests import HTTPConnection

from engine import DEFAULT_TENANT, Forbidden, InvalidRequest, Unauthorized
from server.errors import LoginRequired

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

USER = "user"
OPERATOR = "operator"
METRICS = "metrics"
ROLES = (USER, OPERATOR, METRICS)

SUBPROTOCOL = "hope.v1"
KEY_SUBPROTOCOL = "hope.key."

# A key must fit into a header and into a websocket sub-protocol, which is an RFC 9110 token.
_KEY = re.compile(r"[A-Za-z0-9._~+\-]{1,256}")
_DIGEST = re.compile(r"sha256=([0-9a-f]{64})")
_TENANT = re.compile(r"[A-Za-z0-9_\-]{1,64}")


@dataclass(frozen=True)
class ApiKey:
    """A key as the server keeps it: never the key itself."""

    digest: bytes
    tenant: str = DEFAULT_TENANT
    role: str = USER


@dataclass(frozen=True)
class Principal:
    """Who is calling."""

    tenant: str
    role: str


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """Read keys written `key[:tenant[:role]]`, separated by commas, spaces or lines; `#` starts a comment.

    `sha256=<hex digest>` may stand in for the key itself.

    Raises:
        ValueError: an entry that cannot be read; the message does not repeat the key.
    """
    lines = (line.partition("#")[0] for line in text.splitlines())
    return tuple(_parse_key(entry) for line in lines for entry in re.split(r"[,\s]+", line) if entry)


def find_key(keys: Iterable[ApiKey], offered: str) -> ApiKey | None:
    """The key that was offered. Every key is compared, so that the time taken tells nothing."""
    digest = hashlib.sha256(offered.encode("utf-8", "surrogateescape")).digest()
    found: ApiKey | None = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


class Authorize:
    """Dependency that lets a caller with one of `roles` through and says who it is.

    Args:
        roles: who may pass.
        page: a page for browsers, which may also send the key as the password of HTTP Basic, because a
            browser can set no other header. Only for routes that read nothing of anyone's and change nothing.
    """

    def __init__(self, *roles: str, page: bool = False) -> None:
        self.roles = roles
        self.page = page

    async def __call__(self, connection: HTTPConnection) -> Principal:
        settings = connection.app.state.service.settings.server
        if not settings.api_keys:
            if not settings.insecure:
                _require_local(connection, settings.cors_origins)
            return Principal(DEFAULT_TENANT, OPERATOR)
        offered = _offered_key(connection, self.page)
        key = find_key(settings.api_keys, offered) if offered else None
        if key is None:
            message = "Send a valid key as 'Authorization: Bearer <key>'."
            raise LoginRequired(message) if self.page else Unauthorized(message)
        if key.role not in self.roles:
            raise Forbidden(f"A key of role '{key.role}' may not do this.")
        return Principal(key.tenant, key.role)


allow_users = Authorize(USER, OPERATOR)
allow_operators = Authorize(OPERATOR)
allow_metrics = Authorize(METRICS, OPERATOR)
allow_pages = Authorize(*ROLES, page=True)

Caller = Annotated[Principal, Depends(allow_users)]
Operator = Annotated[Principal, Depends(allow_operators)]


def bearer_key(header: str) -> str | None:
    """The key in the value of an Authorization header."""
    scheme, _, credentials = header.partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def _parse_key(entry: str) -> ApiKey:
    name, *rest = entry.split(":")
    tenant = rest[0] if rest and rest[0] else DEFAULT_TENANT
    role = rest[1] if len(rest) > 1 else USER
    if len(rest) > 2 or not _TENANT.fullmatch(tenant) or role not in ROLES:
        raise ValueError(
            "an API key is written key:tenant:role, with a tenant of letters, digits, '_' and '-' "
            f"and a role of {', '.join(ROLES)}"
        )
    digest = _DIGEST.fullmatch(name)
    if digest:
        return ApiKey(bytes.fromhex(digest.group(1)), tenant, role)
    if not _KEY.fullmatch(name):
        raise ValueError("an API key is 1 to 256 letters, digits and '.', '_', '~', '+', '-'")
    return ApiKey(hashlib.sha256(name.encode()).digest(), tenant, role)


def _offered_key(connection: HTTPConnection, page: bool) -> str | None:
    header = connection.headers.get("authorization", "")
    key = bearer_key(header) or (_basic_password(header) if page else None)
    if key is None and connection.scope["type"] == "websocket":
        for protocol in connection.scope.get("subprotocols", ()):
            if protocol.startswith(KEY_SUBPROTOCOL):
                return str(protocol.removeprefix(KEY_SUBPROTOCOL))
    return key


def _basic_password(header: str) -> str | None:
    scheme, _, credentials = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _require_local(connection: HTTPConnection, allowed: Collection[str]) -> None:
    """Without keys, a page of another site open in the owner's browser must not reach the server; `allowed` ones may.

    Host betrays a name that was re-bound to this machine; Origin a page that opens a websocket here.
    """
    host = _host_name(connection.headers.get("host", ""))
    if not is_loopback(host):
        raise Forbidden("Without API keys only this machine may call; use http://127.0.0.1, or set keys.")
    origin = connection.headers.get("origin")
    if origin and origin not in allowed and urlsplit(origin).netloc != connection.headers.get("host"):
        raise Forbidden("Without API keys no page of another site may call this server but those in HOPE_CORS_ORIGINS.")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError as error:
        raise InvalidRequest("The Host header is malformed.") from error

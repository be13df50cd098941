"""What can go wrong, as a tree; every error carries the server's words and the contract's code.

HopeRequestError
├── Unreachable           nobody answered: nothing was done
│   └── ConnectionLost    the answer was lost: what became of the request is not known
├── InvalidRequest        400: a field is malformed, out of range or unknown
│   └── Unsupported       a feature that this server does not offer
├── Unauthorized          401: no key, or a wrong one
├── Forbidden             403: a key without that right
├── NotFound              404: unknown session, version, generation or route
├── Conflict              409: id taken, key re-used, version is not the head
├── TooLarge              413: body or message over the limit
├── RateLimited           429: the caller's own limit
├── ServerFailure         500: not safe to repeat blindly
│   ├── CorruptMemory     a stored memory failed its checksum
│   ├── LeaseLost         another replica took the session over; nothing was written
│   └── CommitUnknown     the store vanished while committing; the outcome is unknown
├── Unavailable           503: nothing was learned, safe to repeat
│   ├── Overloaded        the queue is full
│   ├── StoreUnavailable  the store does not answer
│   ├── Draining          the server is stopping
│   └── Interrupted       the server stopped in the middle of the turn
└── DeadlineExceeded      504: the turn's deadline passed; nothing was learned
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class HopeRequestError(Exception):
    """Base of every error of this client.

    Args:
        message: what was wrong and how to mend it.
        code: for programs; by default the class's own.
        status: of the HTTP answer, or the one it would have had; None where nobody answered.
        param: the field at fault, if one is.
        retry_after_s: seconds after which trying again makes sense, where the server said so.
        repeatable: whether nothing was done and the same request may be made again; by default the class's own.
    """

    default_code: ClassVar[str] = "internal_error"
    default_status: ClassVar[int | None] = None
    safe_to_repeat: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        code: str | None = None,
        retry_after_s: float | None = None,
        *,
        status: int | None = None,
        param: str | None = None,
        repeatable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.status = status or self.default_status
        self.param = param
        self.retry_after_s = retry_after_s
        self.repeatable = self.safe_to_repeat if repeatable is None else repeatable


class Unreachable(HopeRequestError):
    default_code = "unreachable"
    safe_to_repeat = True


class ConnectionLost(Unreachable):
    default_code = "closed"
    safe_to_repeat = False


class InvalidRequest(HopeRequestError):
    default_code, default_status = "invalid_request", 400


class Unsupported(InvalidRequest):
    default_code = "unsupported"


class Unauthorized(HopeRequestError):
    default_code, default_status = "unauthorized", 401


class Forbidden(HopeRequestError):
    default_code, default_status = "forbidden", 403


class NotFound(HopeRequestError):
    default_code, default_status = "not_found", 404


class Conflict(HopeRequestError):
    default_code, default_status = "conflict", 409


class TooLarge(HopeRequestError):
    default_code, default_status = "too_large", 413


class RateLimited(HopeRequestError):
    default_code, default_status, safe_to_repeat = "rate_limited", 429, True


class ServerFailure(HopeRequestError):
    default_code, default_status = "internal_error", 500


class CorruptMemory(ServerFailure):
    default_code = "corrupt_memory"


class LeaseLost(ServerFailure):
    default_code = "lease_lost"


class CommitUnknown(ServerFailure):
    default_code = "commit_unknown"


class Unavailable(HopeRequestError):
    default_code, default_status, safe_to_repeat = "unavailable", 503, True


class Overloaded(Unavailable):
    default_code = "overloaded"


class StoreUnavailable(Unavailable):
    default_code = "store_unavailable"


class Draining(Unavailable):
    default_code = "draining"


class Interrupted(Unavailable):
    default_code = "cancelled"


class DeadlineExceeded(HopeRequestError):
    default_code, default_status = "deadline_exceeded", 504


def from_event(error: Mapping[str, Any]) -> HopeRequestError:
    """The error object of a websocket or of a stream; such a frame has no headers, so its code says what is safe."""
    kind = _BY_CODE.get(error["code"], HopeRequestError)
    return kind(error["message"], error["code"], param=error.get("param"))


def from_answer(status: int, headers: Mapping[str, str], error: Mapping[str, Any]) -> HopeRequestError:
    """The error object of an HTTP answer: safe to repeat where it says when, and does not forbid it."""
    kind = _BY_CODE.get(error["code"]) or _BY_STATUS.get(status, HopeRequestError)
    return kind(
        error["message"],
        error["code"],
        _seconds(headers.get("retry-after")),
        status=status,
        param=error.get("param"),
        repeatable="retry-after" in headers and headers.get("x-should-retry") != "false",
    )


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isdecimal() else None


def _family(kind: type[HopeRequestError]) -> Iterator[type[HopeRequestError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _family(child)


_BY_CODE = {kind.default_code: kind for kind in _family(HopeRequestError)}
_BY_STATUS = {kind.default_status: kind for kind in HopeRequestError.__subclasses__()}

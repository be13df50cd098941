"""The error tree: every failure a caller can meet, with the words and the code that say how to mend it.

Knows no web: `server/errors.py` holds the one table that turns a class into a status and a close code.

    HopeError
    ├── InvalidRequest        a field is malformed, out of range or unknown
    │   └── Unsupported       a feature this server does not offer
    ├── Unauthorized          no key, or a wrong one
    ├── Forbidden             a key without that right
    ├── NotFound              unknown session, version, generation or route
    ├── Conflict              id taken, key re-used, version is not the head
    │   └── OtherModel        a memory or a generation grew in another model than the one that is served
    ├── TooLarge              body or message over the limit
    ├── RateLimited           the caller's own limit
    ├── Unavailable           ours; safe to repeat, nothing was learned
    │   ├── Overloaded        the queue is full
    │   ├── StoreUnavailable  Redis does not answer
    │   └── Draining          the server is stopping
    ├── DeadlineExceeded      the turn's deadline passed; nothing was learned
    ├── TurnCancelled         the caller stopped the turn; nothing was learned
    └── Internal              ours; not safe to repeat blindly
        ├── CorruptMemory     a stored memory failed its checksum, or its seal does not open
        ├── LeaseLost         another replica took the session over; nothing was written
        └── CommitUnknown     the store vanished while committing; the outcome is unknown
"""

from __future__ import annotations


class HopeError(Exception):
    """Base of every error of this project.

    Args:
        message: what was wrong and how to mend it; never a path, a key or a stack trace.
        param: the request field at fault, if one is.
        retry_after_s: seconds after which repeating the request is safe and sensible.
    """

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(HopeError):
    code = "invalid_request"


class Unsupported(InvalidRequest):
    code = "unsupported"


class Unauthorized(HopeError):
    code = "unauthorized"


class Forbidden(HopeError):
    code = "forbidden"


class NotFound(HopeError):
    code = "not_found"


class Conflict(HopeError):
    code = "conflict"


class OtherModel(Conflict):
    code = "conflict"


class TooLarge(HopeError):
    code = "too_large"


class RateLimited(HopeError):
    code = "rate_limited"


class Unavailable(HopeError):
    code = "overloaded"


class Overloaded(Unavailable):
    code = "overloaded"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class Draining(Unavailable):
    code = "draining"


class DeadlineExceeded(HopeError):
    code = "deadline_exceeded"


class TurnCancelled(HopeError):
    code = "cancelled"


class Internal(HopeError):
    code = "internal_error"


class CorruptMemory(Internal):
    code = "corrupt_memory"


class LeaseLost(Internal):
    code = "lease_lost"


class CommitUnknown(Internal):
    code = "commit_unknown"

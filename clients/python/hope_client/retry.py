"""When a request is made again: a bounded number of times, never past its deadline, never against the server's word.

Knows no transport: errors in, waiting out.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from hope_client.errors import ConnectionLost, HopeRequestError

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0


@dataclass
class Patience:
    """What is left of it for one request.

    Args:
        max_attempts: how often the request may be made in all.
        limit_s: seconds from now after which it is not made again.
        once: asking twice does no more than asking once, so a lost answer may be asked for again.
    """

    max_attempts: int
    limit_s: float
    once: bool
    _failed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.limit_s

    async def wait(self, error: HopeRequestError) -> None:
        """Return when the request may be made again.

        Raises:
            HopeRequestError: that error, where it may not.
        """
        self._failed += 1
        safe = error.repeatable or (self.once and isinstance(error, ConnectionLost))
        wait_s = self._next_wait_s(error.retry_after_s)
        if not safe or self._failed >= self.max_attempts or time.monotonic() + wait_s > self._deadline:
            raise error
        await asyncio.sleep(wait_s)

    def _next_wait_s(self, asked_s: float | None) -> float:
        """Doubles each time, and is spread so that many clients do not come back at the same moment."""
        grown_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (self._failed - 1)) * random.uniform(0.5, 1.0)
        return max(grown_s, asked_s or 0.0)

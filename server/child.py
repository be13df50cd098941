"""The worker that `hope serve` keeps beside it: started, restarted when it dies, stopped at the end.

It is a process of its own at low priority and talks to the server only through the store. It leaves by itself
when its standard input closes, so it outlives no server, not even one that was killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from server.settings import as_environment

if TYPE_CHECKING:
    from types import TracebackType

    from server.settings import Settings

logger = logging.getLogger("hope.server")

NICENESS = 10
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
# A worker that lived this long was well: its death is answered at once, as if it were the first.
WELL_AFTER_S = 60.0
STOP_TIMEOUT_S = 10.0


class WorkerChild:
    """Use as `async with WorkerChild(settings, redis_url):`; the worker lives inside the block.

    Args:
        settings: the server's; the worker gets the same engine and store.
        redis_url: where the store really is; the embedded one has no fixed place.
        command: what to run; the worker of this program unless told otherwise.
    """

    def __init__(self, settings: Settings, redis_url: str, command: list[str] | None = None) -> None:
        own = [sys.executable, "-m", "server.cli", "worker", "--stop-with-parent", "--nice", str(NICENESS)]
        self._command = command or own
        port = settings.server.worker_metrics_port
        self.environment = {
            **os.environ,
            **as_environment(settings),
            "HOPE_REDIS_URL": redis_url,
            "HOPE_METRICS_PORT": "" if port is None else str(port),
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process, or None when there is none at the moment."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def __aenter__(self) -> WorkerChild:
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.cancel()
        await asyncio.wait({self._keeper})
        if self._process is not None and self._process.returncode is None:
            await _stop(self._process)

    async def _keep(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            started_s = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self.environment,
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal is for the server, which stops it in its own time
            )
            logger.info("the worker is process %d", self._process.pid)
            status = await self._process.wait()
            if time.monotonic() - started_s > WELL_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            logger.warning("the worker ended with status %d; starting it again in %.0f s", status, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):  # it may have ended by itself in this very moment
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            logger.warning("the worker did not stop in %.0f s; killing it, which it survives", STOP_TIMEOUT_S)
            process.kill()
            await process.wait()

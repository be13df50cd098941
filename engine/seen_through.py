"""Work that is seen through once it has begun, whoever stops waiting for it. Knows nothing of what it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class SeenThrough:
    """The work of one loop that must come to its end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Its result. A cancel meanwhile is too late and is forgotten: the caller's work ends as this one did."""
        task = self._started(work)
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None:
                    current.uncancel()
        return task.result()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """The same for work whose result nobody waits for: where it fails, the log says so."""
        self._started(work).add_done_callback(_report)

    def _started(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self) -> None:
        """Until all that has begun has ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("what was left to do after a turn failed", exc_info=task.exception())

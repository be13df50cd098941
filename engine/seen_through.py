"""Work that is seen through once it has begun, whoever stops waiting for it. Knows nothing of what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class SeenThrough:
    """The work of one loop that must come to its end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Its result. A cancel meanwhile is too late and is forgotten: the caller's work ends as this one did."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None:
                    current.uncancel()
        return task.result()

    async def wait(self) -> None:
        """Until all that has begun has ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)

"""Work in the background, step by step: on a thread of its own, with a look around before every step.

Knows neither what is worked on nor why it is to halt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Stopped(Exception):
    """The consolidation was told to halt; nothing was written."""


class Background:
    """One thread, and in it one thread of torch.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name, initializer=torch.set_num_threads, initargs=(1,))

    async def compute(self, work: Callable[[], Result], halt: asyncio.Event) -> Result:
        """One step of work; raises Stopped where `halt` is set."""
        if halt.is_set():
            raise Stopped
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Ends the thread after its current step."""
        self._thread.shutdown(wait=True)

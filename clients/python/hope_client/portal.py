"""An event loop in a thread of its own, and what it takes to call into it from threads that block."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import wait
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")
Core = TypeVar("Core")


class Portal:
    """The loop. The thread ends with the program, or earlier with `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hope-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`. A Ctrl-C that comes while waiting cancels it, and is raised when it has stopped."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            wait([future])
            raise

    def close(self) -> None:
        """End the loop and its thread."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Face(Generic[Core]):
    """The blocking face of something that is awaited: its methods are made by `blocking` and `iterating`."""

    def __init__(self, portal: Portal, core: Core) -> None:
        self._portal = portal
        self._core = core


def blocking(
    method: Callable[Concatenate[Core, Given], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Face[Core], Given], Result]:
    """The same method, for callers that wait."""

    @functools.wraps(method)
    def call(self: Face[Core], /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return self._portal.run(method(self._core, *args, **kwargs))

    return call


def iterating(
    method: Callable[Concatenate[Core, Given], AsyncIterator[Result]],
) -> Callable[Concatenate[Face[Core], Given], Iterator[Result]]:
    """The same method, for callers that wait for each of what it yields."""

    @functools.wraps(method)
    def call(self: Face[Core], /, *args: Given.args, **kwargs: Given.kwargs) -> Iterator[Result]:
        return _iterate(self._portal, method(self._core, *args, **kwargs))

    return call


def _iterate(portal: Portal, source: AsyncIterator[Result]) -> Iterator[Result]:
    end = object()

    async def step() -> Result | object:
        return await anext(source, end)

    try:
        while (found := portal.run(step())) is not end:
            yield found  # type: ignore[misc]  # it is not the end, so it is a result
    finally:
        if isinstance(source, AsyncGenerator):
            portal.run(source.aclose())

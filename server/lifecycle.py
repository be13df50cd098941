"""How the server stops: refuse new turns, finish the running ones, then close sockets, then the engine.

uvicorn alone closes its listener and every websocket the moment it is told to stop, mid-answer or not, and
ends the lifespan before cancelled handlers have cleaned up; see DrainingServer. Knows no routes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    import socket
    from types import FrameType

logger = logging.getLogger("hope.server")

# What uvicorn grants handlers after the drain: enough to say goodbye, since every turn has ended by then.
GOODBYE_TIMEOUT_S = 3


class Lifecycle:
    """Whether the server is stopping, and how many turns have not ended.

    Args:
        drain_timeout_s: seconds running turns get after the server was told to stop.
        on_drain: called once, when it is told.
    """

    def __init__(self, drain_timeout_s: float, on_drain: Callable[[], None]) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._on_drain = on_drain
        self._deadline: float | None = None
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        """True from the first signal on."""
        return self._deadline is not None

    @property
    def idle(self) -> bool:
        """True when no turn is running and every answer has been handed to its socket."""
        return self._idle.is_set()

    @property
    def drained(self) -> bool:
        """True when the server may go: told to stop, and nothing runs or time is up."""
        return self._deadline is not None and (self.idle or time.monotonic() >= self._deadline)

    def begin_drain(self) -> None:
        """From now on no turn starts."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._drain_timeout_s
            self._on_drain()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The server waits for what runs inside before it stops."""
        self._num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if self._num_running == 0:
                self._idle.set()

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Wait for running turns to end, but no longer than `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()


class DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps listening while it drains, so that probes and refusals are still answered.

    The first SIGTERM or SIGINT begins the drain, the second stops at once. Exits 0 either way.

    Args:
        config: uvicorn's.
        lifecycle: shared with the app.
        is_alive: asked twice a second; once it says no, the process ends, for a dead engine serves nobody.
        on_listening: called with the real port once connections are accepted.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        *,
        is_alive: Callable[[], bool] = lambda: True,
        on_listening: Callable[[int], None] = lambda port: None,
    ) -> None:
        config.timeout_graceful_shutdown = GOODBYE_TIMEOUT_S
        super().__init__(config)
        self.engine_died = False
        self._lifecycle = lifecycle
        self._is_alive = is_alive
        self._on_listening = on_listening
        self._stop_asked = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_listening(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Runs inside a signal handler, so it only leaves a note for the next tick. The signal is not recorded
        # with uvicorn, which would raise it again at the end and turn a clean exit into a killed process.
        if self._stop_asked:
            self.force_exit = True
            self.should_exit = True
        self._stop_asked = True

    async def on_tick(self, counter: int) -> bool:
        if self._stop_asked and not self._lifecycle.draining:
            logger.info("stopping: no new turns, finishing the running ones")
            self._lifecycle.begin_drain()
        if self._lifecycle.drained:
            self.should_exit = True
        if counter % 5 == 0 and not self._is_alive():
            logger.error("the engine stopped working; ending the process so that it can be started afresh")
            self.engine_died = True
            self.should_exit = True
        return await super().on_tick(counter)

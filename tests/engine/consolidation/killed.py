"""A worker that is killed after its n-th word with the store, as a process: `python -m ... URL`, a number a line.

Each number forks a worker that has everything loaded; 0 is never killed. Answers each with the worker's exit status.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.config import StoreSettings
from engine.consolidation.policy import ReplayPolicy
from engine.consolidation.session import SessionConsolidation
from engine.consolidation.tenant import TenantConsolidation
from engine.consolidation.worker import Worker
from engine.sessions.connection import Connection, Value
from engine.sessions.keys import WORKER_ALIVE
from engine.sessions.store import SessionStore
from tests.engine.consolidation.crowd import POLICY, SUITE, tiny
from tests.engine.consolidation.samples import Recorder

QUICK = replace(POLICY, num_steps=1, rows_per_step=2, longest_dream=3, most_perplexity=1e9, least_calm=0.0)
LEFT_LINE_S = 0.05


class Mortal(Connection):
    """Dies of its n-th word, once the store has heard and answered it."""

    def __init__(self, url: str, dies_at: int) -> None:
        super().__init__(url)
        self._words_left = dies_at

    async def batch(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        found = await super().batch(commands)
        # A heartbeat comes when it comes.
        if not any(WORKER_ALIVE in command for command in commands):
            self._die_a_little()
        return found

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Value]) -> Any:
        found = await super().run(script, keys, args)
        self._die_a_little()
        return found

    def _die_a_little(self) -> None:
        self._words_left -= 1
        if self._words_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def work_the_line_off(url: str, dies_at: int) -> None:
    """A worker that goes once the line is empty."""
    model, tokenizer = tiny()
    connection = Mortal(url, dies_at)
    store, observer, stop = SessionStore(connection, StoreSettings()), Recorder(), asyncio.Event()
    sessions = SessionConsolidation(model, tokenizer, store, observer, ReplayPolicy(), SUITE)
    tenants = TenantConsolidation(model, tokenizer, store, observer, QUICK, SUITE)
    working = asyncio.create_task(Worker(store, sessions, tenants, observer).run(stop))
    while not observer.consolidations:  # noqa: ASYNC110 - the observer has no event
        await asyncio.sleep(0.005)
    await asyncio.sleep(LEFT_LINE_S)
    stop.set()
    # It may wait for more work for a second: nobody has that second here.
    working.cancel()
    await asyncio.wait({working})
    sessions.close()
    tenants.close()
    await store.close()


def main(url: str) -> None:
    tiny()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(work_the_line_off(url, int(line)))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""An engine's thread for tests, without store or event loop: turns go in, their signals come out of a queue."""

from __future__ import annotations

import contextlib
import itertools
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.config import EngineSettings
from engine.core import TurnRequest
from engine.live import Failed, Finished, LiveTurn, Signal, Spoken
from engine.loop import EngineLoop
from engine.model.hope import Hope, Memory
from engine.tokenizer import END
from tests.engines import Recorder, loaded
from tests.tiny import initial, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MESSAGE = "My dog is called Rex and he likes the river."
FOREVER = 10**9
_rows = itertools.count(1)


def tireless(**changes: Any) -> Hope:
    """A model that never ends its reply by itself, at temperature 0."""
    model = loaded(**changes)[0]
    with torch.no_grad():
        model.embedding.weight[END] = 0.0
    return model


def make_loop(model: Hope | None = None, **settings: Any) -> tuple[EngineLoop, Recorder]:
    """A loop that is not started yet, and the ear it reports to."""
    recorder = Recorder()
    return EngineLoop(model or tireless(), EngineSettings(**settings), recorder), recorder


@contextlib.contextmanager
def started(loop: EngineLoop) -> Iterator[None]:
    """The loop's thread runs inside the block."""
    loop.start()
    try:
        yield
    finally:
        loop.stop()


class Asked:
    """A turn handed to a loop, and the signals that came of it."""

    def __init__(self, loop: EngineLoop, message: str = MESSAGE, memory: Memory | None = None, **request: Any) -> None:
        self.signals: queue.Queue[Signal] = queue.Queue()
        asked = TurnRequest(message, **{"temperature": 0.0, "max_tokens": 6, **request})
        memory = initial(loop.model) if memory is None else memory
        self.live = LiveTurn.begin(next(_rows), asked, memory, TOKENIZER, self.signals.put, time.monotonic())
        loop.submit(self.live)

    def heard(self, timeout_s: float = 5.0) -> Signal:
        """The next signal; `queue.Empty` where none comes."""
        return self.signals.get(timeout=timeout_s)

    def end(self) -> Finished | Failed:
        """The last signal."""
        while True:
            signal = self.heard()
            if not isinstance(signal, Spoken):
                assert self.signals.empty(), "a turn ends once"
                return signal

    def finished(self) -> Finished:
        end = self.end()
        assert isinstance(end, Finished), end
        return end

    def error(self) -> Exception:
        end = self.end()
        assert isinstance(end, Failed), end
        return end.error


def moved(recorder: Recorder, level: str) -> list[str]:
    """Outcomes of the level's updates so far."""
    return [outcome for name, outcome, _ in recorder.updates if name == level]


def until(condition: Callable[[], object]) -> None:
    """Waits for something that must become true soon."""
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)

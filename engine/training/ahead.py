"""Dialogues made ahead of the steps that learn from them, in processes of their own: for GPUs, which would wait.

Rows are those that `DialogueData` makes by itself, whatever the number of processes. Knows no tokens and no model.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Self

from engine.training.data import DialogueData, Row
from engine.training.dialogue import Stage

# Batches that are made or wait to be asked for, for each process.
BATCHES_AHEAD = 2

_data: DialogueData | None = None


class Ahead:
    """Makes dialogues from `first_step` on; its `rows` is to be the `DialogueData.source` while this is open.

    Args:
        data: whose dialogues; its text stays where it is.
        stages: the stage of every step.
        first_step, last_step: the steps to come, from one up to before the other.
        num_processes: at least 1; each holds a copy of `data`.
    """

    def __init__(
        self, data: DialogueData, stages: Callable[[int], Stage], first_step: int, last_step: int, num_processes: int
    ) -> None:
        self._own = data
        # A fork would take along the GPU's state, and the locks of torch's threads.
        context = multiprocessing.get_context("spawn")
        alone = DialogueData(data.tokenizer, data.talk, data.seed)
        self._pool = ProcessPoolExecutor(num_processes, context, _hold, (alone,))
        self._begins = _begins(stages, first_step, last_step)
        self._made: deque[tuple[int, Stage, Future[list[Row]]]] = deque()
        self._depth = BATCHES_AHEAD * num_processes
        self._order()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def rows(self, first_step: int, stage: Stage, count: int) -> list[Row]:
        """As `DialogueData.dialogues`; what was not foreseen is made here and now."""
        while self._made and self._made[0][0] < first_step:
            self._made.popleft()[2].cancel()
        self._order()
        if not self._made or self._made[0][:2] != (first_step, stage):
            return self._own.dialogues(first_step, stage, count)
        rows = self._made.popleft()[2].result()
        self._order()
        return rows[:count]

    def _order(self) -> None:
        while len(self._made) < self._depth and (begin := next(self._begins, None)) is not None:
            first_step, stage = begin
            self._made.append((first_step, stage, self._pool.submit(_make, first_step, stage)))


def _begins(stages: Callable[[int], Stage], first_step: int, last_step: int) -> Iterator[tuple[int, Stage]]:
    """The steps at which dialogues begin, and their stage; those in whose middle a run was resumed come first."""
    step = first_step
    while step < last_step:
        stage = stages(step)
        begin = step - step % stage.segments
        yield begin, stage
        step += 1
        while step < last_step and step % stage.segments and stages(step) == stage:
            step += 1


def _hold(data: DialogueData) -> None:
    global _data
    _data = data


def _make(first_step: int, stage: Stage) -> list[Row]:
    assert _data is not None
    return _data.dialogues(first_step, stage, stage.num_rows)

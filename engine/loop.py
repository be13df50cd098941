"""The engine's thread: it alone touches the device. admit -> schedule -> run -> learn -> emit, step after step.

Work happens on copies; nothing it does is durable or visible before the event loop's side has committed it.
Knows no Redis and no web.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.config import CMS_FAST, TITANS, EngineSettings
from engine.errors import DeadlineExceeded, HopeError, Internal, TurnCancelled
from engine.live import Failed, Finished, LiveTurn
from engine.model.hope import POSITION, Hope, Memory
from engine.model.learning import learn_rows
from engine.model.portable import distance, pack_row, unpack_row
from engine.model.shared import session_part
from engine.observer import Observer
from engine.runner import Runner
from engine.sampler import odds, sample
from engine.scheduler import Demand, Share, admit, schedule

logger = logging.getLogger(__name__)

IDLE_WAIT_S = 0.5
STOP_TIMEOUT_S = 10.0
MIXED_TOKEN_BUDGET = 256


class EngineLoop:
    """Runs turns of many sessions in one batch."""

    def __init__(self, model: Hope, settings: EngineSettings, observer: Observer) -> None:
        self.model, self.settings, self.observer = model, settings, observer
        self.heartbeat = time.monotonic()
        self._runner = Runner(model)
        self._running: dict[int, LiveTurn] = {}
        self._waiting: deque[LiveTurn] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="hope-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current step; turns still running fail as cancelled.

        A thread that is stuck in a step is left behind after `STOP_TIMEOUT_S`: it does not keep the process alive.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("the engine's thread is stuck and was left behind")

    def submit(self, turn: LiveTurn) -> None:
        """Hands a turn over; its signals come through `turn.emit`."""
        with self._wake:
            if not self._stopping:
                self._waiting.append(turn)
                self._wake.notify()
                return
        turn.emit(Failed(_stopped()))

    @property
    def alive(self) -> bool:
        """Whether the thread runs and has lately been seen to."""
        fresh = time.monotonic() - self.heartbeat < self.settings.heartbeat_timeout_s
        return self._thread.is_alive() and fresh

    @property
    def load(self) -> tuple[int, int]:
        """(waiting, running) turns."""
        return len(self._waiting), len(self._running)

    def _run(self) -> None:
        torch.set_num_threads(self.settings.torch_threads)
        while not self._stopping:
            self.heartbeat = time.monotonic()
            with self._wake:
                if not self._waiting and not self._running:
                    self._wake.wait(IDLE_WAIT_S)
            try:
                self._admit()
                if self._running:
                    self._step()
            except Exception as error:
                # A failed pass leaves the batch's state unknown: every turn in it fails, none of them has committed.
                logger.exception("a step of the engine failed")
                self._fail_all(error)
        for turn in [*self._running.values(), *self._waiting]:
            turn.emit(Failed(_stopped()))

    def _admit(self) -> None:
        with self._wake:
            count = admit(len(self._waiting), len(self._running), max_rows=self.settings.max_batch_rows)
            entering = [self._waiting.popleft() for _ in range(count)]
        # All of them are running before the first one enters: where that fails, every one is told.
        self._running |= {turn.row: turn for turn in entering}
        for turn in entering:
            turn.started = time.monotonic()
        self._runner.enter({turn.row: turn.memory for turn in entering})
        self.observer.queue(*self.load)

    def _step(self) -> None:
        self._drop_ended()
        shares = self._schedule()
        if not shares:
            return
        begun = time.monotonic()
        try:
            logits = self._runner.step({s.row: self._running[s.row].pending[: s.count] for s in shares})
            ready = [self._running[row] for row, rows in logits.items() if self._running[row].consumed(rows)]
            self._speak(self._without_broken(ready, logits), logits)
            still = [self._running[share.row] for share in shares if share.row in self._running]
            self._learn_inside([turn for turn in still if turn.reading and turn.request.learn])
            self._finish([turn for turn in still if turn.done])
        finally:
            self.observer.batch(len(shares), time.monotonic() - begun)

    def _drop_ended(self) -> None:
        """Cancelled turns and those past their deadline, whether they run or still wait for a row."""
        now = time.monotonic()
        ended = [turn for turn in self._running.values() if turn.cancelled or now > turn.deadline]
        self._runner.leave([turn.row for turn in ended])
        for turn in ended:
            del self._running[turn.row]
            turn.emit(Failed(_ended(turn)))
        with self._wake:
            waiting, self._waiting = self._waiting, deque()
            for turn in waiting:
                if turn.cancelled or now > turn.deadline:
                    turn.emit(Failed(_ended(turn)))
                else:
                    self._waiting.append(turn)

    def _schedule(self) -> list[Share]:
        demands = [
            Demand(row, turn.due(self.settings.learn_every_tokens), int(turn.memory[POSITION]) + turn.taken)
            for row, turn in self._running.items()
        ]
        return schedule(demands, chunk=self.model.config.chunk_memory, token_budget=MIXED_TOKEN_BUDGET)

    def _without_broken(self, turns: list[LiveTurn], logits: dict[int, Tensor]) -> list[LiveTurn]:
        """The turns that can speak: one whose logits are no numbers ends here, and takes nobody with it."""
        broken = [turn for turn in turns if not bool(torch.isfinite(logits[turn.row][-1]).all())]
        self._runner.leave([turn.row for turn in broken])
        for turn in broken:
            self._reject(turn)
        return [turn for turn in turns if turn not in broken]

    def _reject(self, turn: LiveTurn) -> None:
        del self._running[turn.row]
        self.observer.memory_update(TITANS, "rejected", 0.0)
        turn.emit(Failed(Internal("the turn's memory was not finite and was dropped; nothing was learned")))

    def _speak(self, turns: list[LiveTurn], logits: dict[int, Tensor]) -> None:
        if not turns:
            return
        last = torch.stack([logits[turn.row][-1] for turn in turns])
        choices = [turn.choice for turn in turns]
        tokens = sample(last, choices)
        for turn, token, chances in zip(turns, tokens, odds(last, tokens, choices), strict=True):
            before = turn.last_token
            turn.say(token, chances)
            if before:
                self.observer.token_interval(turn.last_token - before)
            else:
                self.observer.first_token(turn.first_token - turn.arrived)

    def _learn_inside(self, turns: list[LiveTurn]) -> None:
        """`cms.fast` steps every so many tokens inside a long message (its clock, DESIGN.md)."""
        every = self.settings.learn_every_tokens
        due = [turn for turn in turns if turn.read - turn.lesson_start >= every]
        after = self._learn({turn: self._runner.memory(turn.row) for turn in due}, final=False)
        self._runner.replace(
            {turn.row: {k: v for k, v in memory.items() if k.startswith(CMS_FAST)} for turn, memory in after.items()}
        )

    def _learn(self, memories: Mapping[LiveTurn, Memory], *, final: bool) -> dict[LiveTurn, Memory]:
        """The memory of each turn after the lesson that is due; a turn without one keeps what it has."""
        most = self.settings.learn_every_tokens
        asked = {turn: turn.next_lesson(most, memory, final=final) for turn, memory in memories.items()}
        lessons = {turn: lesson for turn, lesson in asked.items() if lesson is not None}
        after = dict(memories)
        learned = learn_rows(self.model, CMS_FAST, list(lessons.values()))
        for (turn, lesson), (memory, moved) in zip(lessons.items(), learned, strict=True):
            after[turn] = turn.lesson_memory = memory
            self.observer.memory_update(CMS_FAST, "applied" if moved > 0 else "skipped", moved)
            self.observer.tokens("learned", len(lesson.tokens))
        return after

    def _finish(self, turns: list[LiveTurn]) -> None:
        left = self._runner.leave([turn.row for turn in turns])
        learners = [turn for turn in turns if turn.request.learn]
        for turn in learners:
            self._report_titans(turn, left[turn.row])
        learned = self._learn({turn: left[turn.row] for turn in learners}, final=True)
        for turn in turns:
            self._conclude(turn, learned.get(turn))

    def _conclude(self, turn: LiveTurn, learned: Memory | None) -> None:
        memory: Memory | None = None
        tensors: dict[str, Tensor] | None = None
        if learned is not None:
            tensors = pack_row(session_part(learned, self.model), self.model.config.chunk_projections)
            if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
                self._reject(turn)
                return
            memory = unpack_row(tensors, self.model)
        # Not before: a turn whose lesson fails is told like every other of its step.
        del self._running[turn.row]
        turn.emit(
            Finished(
                turn.speech.text,
                turn.finish_reason,
                len(turn.prompt),
                turn.completion_tokens,
                turn.surprise,
                memory,
                tensors,
                turn.started - turn.arrived,
                (turn.first_token or time.monotonic()) - turn.arrived,
                time.monotonic() - turn.arrived,
            )
        )

    def _report_titans(self, turn: LiveTurn, after: Memory) -> None:
        """One report a chunk that the turn filled: `skipped` where the memories did not move at all."""
        chunk = self.model.config.chunk_memory
        filled = int(after[POSITION]) // chunk - int(turn.memory[POSITION]) // chunk
        if filled:
            moved = distance(turn.memory, after, TITANS)
            for _ in range(filled):
                self.observer.memory_update(TITANS, "applied" if moved > 0 else "skipped", moved / filled)

    def _fail_all(self, cause: Exception) -> None:
        failed, self._running, self._runner = self._running, {}, Runner(self.model)
        for turn in failed.values():
            error = Internal("the model failed on this turn; nothing was learned")
            error.__cause__ = cause
            turn.emit(Failed(error))


def _stopped() -> HopeError:
    return TurnCancelled("the engine stopped before the turn was through; nothing was learned")


def _ended(turn: LiveTurn) -> HopeError:
    if turn.cancelled:
        return TurnCancelled("the turn was cancelled; nothing was learned")
    return DeadlineExceeded("the turn's deadline passed; nothing was learned: allow more timeout_s")

"""One turn while it runs: what it still has to read, what it has said, what it has measured. Knows no batch.

READ the message, SPEAK until the end, and it is `done`; the engine's loop moves it and makes memory learn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from engine.core import TurnRequest
from engine.logprobs import SaidToken
from engine.model.hope import Memory
from engine.model.learning import RowLesson
from engine.sampler import Choice, Odds, Speech
from engine.tokenizer import END, Tokenizer

# Of fewer tokens nothing is learned: the frame of a turn has two.
SHORTEST_LESSON = 3


@dataclass(frozen=True)
class Spoken:
    """A piece of the reply; with the tokens that begin in it, where their odds were asked for."""

    text: str
    logprobs: tuple[SaidToken, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The model is through with a turn; nothing is durable yet.

    Attributes:
        memory: the memory after the turn, batch size 1, at stored precision; None where nothing is to be kept.
        tensors: the same, as the store takes it.
    """

    reply: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    surprise: float
    memory: Memory | None
    tensors: dict[str, Tensor] | None
    queue_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class Failed:
    """The turn ended without a result."""

    error: Exception


Signal = Spoken | Finished | Failed


@dataclass(eq=False)
class LiveTurn:
    """A running turn.

    Attributes:
        row: its number in the batch.
        memory: the session's memory before the turn, batch size 1; never changed.
        emit: called with every signal, from the engine's thread.
        said: what it is to say, in tokens, where that is known already; else it chooses.
        lesson_memory: the memory from which the next lesson is read: `memory`, then where the last lesson ended.
        deadline: monotonic time after which the turn fails.
        arrived: monotonic time at which the caller asked.
        cancelled: set by the caller; the engine drops the turn at its next step.
    """

    row: int
    request: TurnRequest
    memory: Memory
    emit: Callable[[Signal], None]
    deadline: float
    arrived: float
    prompt: list[int]
    speech: Speech
    choice: Choice
    lesson_memory: Memory
    said: Sequence[int] | None = None
    cancelled: bool = False
    pending: list[int] = field(default_factory=list)
    read: int = 0
    surprise_sum: float = 0.0
    completion_tokens: int = 0
    finish_reason: str = ""
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    lesson_start: int = 0
    taken: int = 0

    @classmethod
    def begin(
        cls,
        row: int,
        request: TurnRequest,
        memory: Memory,
        tokenizer: Tokenizer,
        emit: Callable[[Signal], None],
        arrived: float,
        said: Sequence[int] | None = None,
    ) -> LiveTurn:
        """A turn that has not read anything yet."""
        prompt = tokenizer.read_turn(request.message, reply=request.max_tokens > 0, before=request.before)
        generator = torch.Generator()
        if request.seed is None:
            generator.seed()
        else:
            generator.manual_seed(request.seed)
        choice = Choice(request.temperature, request.top_p, generator, request.top_logprobs)
        speech = Speech(tokenizer.stream(), request.stop)
        deadline = arrived + request.timeout_s
        pending = list(prompt)
        return cls(row, request, memory, emit, deadline, arrived, prompt, speech, choice, memory, said, pending=pending)

    @property
    def reading(self) -> bool:
        """Whether part of the message is still unread."""
        return self.read < len(self.prompt)

    @property
    def done(self) -> bool:
        """Whether everything was read and said."""
        return not self.pending

    @property
    def surprise(self) -> float:
        """Mean negative log-likelihood of the message's tokens, in nats."""
        return self.surprise_sum / max(1, len(self.prompt) - 2)

    def consumed(self, logits_TV: Tensor) -> bool:
        """Takes the logits after the next `len(logits)` pending tokens; True where the row now has to sample."""
        count = logits_TV.shape[0]
        del self.pending[:count]
        self.taken += count
        if self.read == len(self.prompt):
            return not self.pending and not self.finish_reason
        begin, self.read = self.read, self.read + count
        # The first and last tokens are the turn's frame; what lies between is the message.
        targets = self.prompt[begin + 1 : min(self.read + 1, len(self.prompt) - 1)]
        if targets:
            losses = functional.cross_entropy(logits_TV[: len(targets)], torch.tensor(targets), reduction="sum")
            self.surprise_sum += float(losses)
        if self.reading:
            return False
        if self.said is not None:
            self.completion_tokens = len(self.said)
            self.pending = [*self.said, END]
            self.finish_reason = "stop"
            return False
        if self.request.max_tokens == 0:
            self.finish_reason = "stop"
            return False
        return True

    def say(self, token: int, odds: Odds | None = None) -> None:
        """Takes a sampled token, with its odds where they are to be told; queues what the model must read of it."""
        now = time.monotonic()
        self.first_token = self.first_token or now
        self.last_token = now
        if token == END:
            self.finish_reason = "stop"
            self.pending = [END]
            text = self.speech.finish()
        else:
            self.completion_tokens += 1
            self.pending = [token]
            text = self.speech.push(token, odds)
            if self.speech.stopped:
                self.finish_reason = "stop"
            elif self.completion_tokens >= self.request.max_tokens:
                self.finish_reason = "length"
                text += self.speech.finish()
            if self.finish_reason:
                self.pending.append(END)
        if text:
            self.emit(Spoken(text, self.speech.shown_tokens()))

    def due(self, learn_every_tokens: int) -> int:
        """Pending tokens up to the next lesson, whose place must not depend on who shares the batch (law 2)."""
        if not (self.request.learn and self.reading):
            return len(self.pending)
        return max(1, min(len(self.pending), learn_every_tokens - (self.read - self.lesson_start)))

    def next_lesson(self, most: int, after: Memory, *, final: bool) -> RowLesson | None:
        """Read tokens that are due to be learned, once: `most` at a time inside a long message, the rest at its end.

        Args:
            after: the memory that is to receive what is learned.
        """
        tokens = self.prompt[self.lesson_start : self.read]
        if (len(tokens) < most and not final) or len(tokens) < SHORTEST_LESSON:
            return None
        counts = [1.0] * len(tokens)
        # The first and last tokens of the prompt are the turn's frame.
        counts[0] = float(self.lesson_start > 0)
        counts[-1] = float(self.read < len(self.prompt))
        self.lesson_start = self.read
        return RowLesson(self.lesson_memory, after, tokens, counts)

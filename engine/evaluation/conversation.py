"""Conversations of many sessions side by side, straight on a model: no engine, no store, no waiting.

Turns have the tokens, the lesson of `cms.fast`, the precision and the consolidation that they have in the engine and
its worker; but a reply may be given: it is then read, not spoken, so that a thousand turns are affordable (in
`recall.py` every turn speaks). Works on anything that carries a memory as a value; levels are Hope's. Knows no facts.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import CMS_FAST, CMS_MEDIUM, TITANS, EngineSettings
from engine.consolidation.policy import SESSION_POLICY, GenerationPolicy, ReplayPolicy
from engine.consolidation.portion import Portion
from engine.consolidation.replay import UPDATES, compose, is_finite, mean_surprise, medium_of, step, with_medium
from engine.consolidation.suite import load_suite
from engine.core import MemoryReport, Timing, Turn, Usage
from engine.errors import InvalidRequest
from engine.evaluation.examples import Model
from engine.model.hope import Hope, Memory
from engine.model.learning import Lesson, learn, surprise
from engine.model.portable import level_of, pack_row, unpack_row
from engine.sampler import Choice, sample
from engine.tokenizer import END, PAD, Tokenizer

SETTINGS = EngineSettings()
MAX_REPLY_TOKENS = 48
# Questions answered together: each holds a copy of its session's memory.
ROWS_ASKED = 50


@dataclass(frozen=True)
class Exchange:
    """One turn of a session: what the user says, and the reply where it is given; None lets the model speak."""

    message: str
    reply: str | None = None


@dataclass(frozen=True)
class Habits:
    """How the sessions' memory works.

    Attributes:
        off: levels that are switched off. `titans` starts anew with every turn (attention's cache too), `cms.fast`
            has no lesson, `cms.medium` no consolidation.
        worker_turns: how many turns of a session the worker takes in, the first ones, a portion as soon as it is
            whole. A turn that is taken in costs as much as some twenty that are not.
        policy: of the worker.
    """

    off: frozenset[str] = frozenset()
    worker_turns: int = 0
    policy: ReplayPolicy = SESSION_POLICY


class Conversations:
    """Sessions that take their turns in step, and may be asked in between without learning from it.

    Args:
        model: in evaluation mode, its parameters without gradients.
        tokenizer: the model's.
        num_sessions: rows B.
        habits: what is learned, and when.

    Attributes:
        memory: the sessions' memory, batch first.

    Raises:
        InvalidRequest: a level is to be off that this model has not.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, num_sessions: int, habits: Habits | None = None) -> None:
        self.model, self.tokenizer, self.habits = model, tokenizer, habits or Habits()
        held = levels_of(model)
        for name in sorted(self.habits.off - set(held)):
            raise InvalidRequest(f"this model has no level '{name}' to switch off", param="without")
        self._learning = {name for name in held if name not in self.habits.off}
        with torch.no_grad():
            self._fresh = {name: value.clone() for name, value in model.initial_memory(num_sessions).items()}
        self.memory: Memory = dict(self._fresh)
        self._num_turns = 0
        self._due: list[list[Turn]] = [[] for _ in range(num_sessions)]

    def turn(self, exchanges: Sequence[Exchange]) -> list[str]:
        """One turn of every session, at temperature 0; returns the replies, given or spoken.

        Raises:
            InvalidRequest: a message is longer than the engine learns at once.
        """
        prompts = [self.tokenizer.read_turn(one.message, reply=True) for one in exchanges]
        given = [None if one.reply is None else self.tokenizer.encode(one.reply) for one in exchanges]
        met = self._met(prompts)
        spoken, after = self._converse(self.memory, prompts, given)
        if CMS_FAST in self._learning:
            assert isinstance(self.model, Hope)
            after, _ = learn(self.model, CMS_FAST, self.memory, after, _lesson(prompts))
        after = _stored(after)
        if TITANS in self.habits.off:
            after = {**self._fresh, **_of_levels(after)}
        self.memory = after
        self._count(exchanges, spoken, met)
        return [self.tokenizer.decode(ids) for ids in spoken]

    def ask(self, questions: Sequence[tuple[int, str]]) -> list[str]:
        """Replies to questions (session, message), each asked by itself at temperature 0; nothing is learned."""
        replies: list[str] = []
        for first in range(0, len(questions), ROWS_ASKED):
            asked = questions[first : first + ROWS_ASKED]
            memory = _rows(self.memory, [session for session, _ in asked])
            prompts = [self.tokenizer.read_turn(message, reply=True) for _, message in asked]
            spoken, _ = self._converse(memory, prompts, [None] * len(asked), keep=False)
            replies += [self.tokenizer.decode(ids) for ids in spoken]
        return replies

    @torch.no_grad()
    def _converse(
        self,
        memory: Memory,
        prompts: Sequence[list[int]],
        given: Sequence[list[int] | None],
        *,
        keep: bool = True,
    ) -> tuple[list[list[int]], Memory]:
        """Reads the prompts and the given replies and speaks the others: the replies' tokens, the memory after END.

        Where that memory is not to be kept, rows that have spoken leave, and what is returned of it means nothing.
        """
        replies = [list(ids or ()) for ids in given]
        pending = [prompt if ids is None else [*prompt, *ids, END] for prompt, ids in zip(prompts, given, strict=True)]
        rows = list(range(len(prompts)))
        speaking = {row for row in rows if given[row] is None}
        greedy = Choice(0.0, 1.0, torch.Generator())
        while any(pending[row] for row in rows):
            logits_BV, memory = self._read([pending[row] for row in rows], memory)
            for row, token in zip(rows, sample(logits_BV, [greedy] * len(rows)), strict=True):
                pending[row] = _taken(replies[row], token) if row in speaking else []
                if pending[row][-1:] == [END]:
                    speaking.remove(row)
                    pending[row] = pending[row] if keep else []
            running = [at for at, row in enumerate(rows) if pending[row]]
            if not keep and 0 < 2 * len(running) <= len(rows):
                memory, rows = _rows(memory, running), [rows[at] for at in running]
        return replies, memory

    def _read(self, tokens: Sequence[Sequence[int]], memory: Memory) -> tuple[Tensor, Memory]:
        """Logits [B,V] after each row's last token (those of rows that read nothing mean nothing), and the memory."""
        ids_BT, lengths_B = _padded(tokens)
        x_BTD, memory = self.model.hidden(ids_BT, memory, lengths_B)
        last_B = (lengths_B - 1).clamp_min(0)
        return self.model.logits(x_BTD[torch.arange(len(tokens)), last_B]), memory

    @property
    def _is_taken_in(self) -> bool:
        """Whether the worker takes the turn that runs in, sooner or later."""
        return CMS_MEDIUM in self._learning and self._num_turns < self.habits.worker_turns

    def _met(self, prompts: Sequence[list[int]]) -> list[float]:
        """Mean surprise of each message in nats, by which the worker weighs its turn; zero where it does not come."""
        if not self._is_taken_in:
            return [0.0] * len(prompts)
        assert isinstance(self.model, Hope)
        met: list[float] = surprise(self.model, self.memory, _lesson(prompts)).tolist()
        return met

    def _count(self, exchanges: Sequence[Exchange], replies: Sequence[list[int]], met: Sequence[float]) -> None:
        """Counts a turn; the worker takes its portion in as soon as that is whole."""
        is_taken_in = self._is_taken_in
        self._num_turns += 1
        if not is_taken_in:
            return
        for turns, exchange, reply, nats in zip(self._due, exchanges, replies, met, strict=True):
            cut = exchange.reply is None and len(reply) == MAX_REPLY_TOKENS
            turns.append(_as_stored(self._num_turns, exchange.message, self.tokenizer.decode(reply), nats, cut))
        if self._num_turns % SETTINGS.turns_per_consolidation == 0:
            taken_in = [self._consolidated(row, turns) for row, turns in enumerate(self._due)]
            self.memory = {name: torch.cat([one[name] for one in taken_in]) for name in self.memory}
            self._due = [[] for _ in self._due]

    def _consolidated(self, row: int, turns: Sequence[Turn]) -> Memory:
        """A session's memory (batch size 1) once the worker has taken these turns in; as it was where that failed."""
        assert isinstance(self.model, Hope)
        model, policy = self.model, self.habits.policy
        memory = _rows(self.memory, [row])
        stored = pack_row(memory, model.config.chunk_projections)
        medium: Memory | None = medium_of(stored, model)
        if policy.num_steps and medium is not None:
            medium = _replayed(model, self.tokenizer, policy, medium, turns)
        if policy.dreams is not None and medium is not None:
            medium = _dreamt(model, self.tokenizer, policy.dreams, medium, memory, turns)
        if medium is None or not is_finite(medium):
            return memory
        return {**memory, **_of_levels(unpack_row(with_medium(stored, medium, model), model))}


def _replayed(
    model: Hope, tokenizer: Tokenizer, policy: ReplayPolicy, medium: Memory, turns: Sequence[Turn]
) -> Memory | None:
    """What the worker's replay makes of it; None where it made things worse."""
    rows, before = compose(turns, tokenizer, policy), float("nan")
    for number in range(policy.num_steps):
        medium, done = step(model, medium, rows, policy, policy.rate(len(turns)))
        before = done.surprise if number == 0 else before
    return medium if mean_surprise(model, medium, rows, policy) <= before else None


def _dreamt(
    model: Hope, tokenizer: Tokenizer, policy: GenerationPolicy, medium: Memory, memory: Memory, turns: Sequence[Turn]
) -> Memory | None:
    """What the worker's dreams make of it; None where they made things worse."""
    portion = Portion(model, tokenizer, load_suite(), policy, medium, {}, memory, int(medium[UPDATES]))
    for turn in turns:
        portion.take_in(turn)
    if not portion.prepare():
        return medium
    losses = [portion.step(number).loss for number in range(policy.num_steps)]
    return portion.medium if losses[-1] <= losses[0] else None


def levels_of(model: Model) -> tuple[str, ...]:
    """The levels that learn while a session goes on, fast to slow; another model than Hope has none."""
    if not isinstance(model, Hope):
        return ()
    held = [level.name for level in model.config.levels if level.scope == "session"]
    return (TITANS, *(name for name in (CMS_FAST, CMS_MEDIUM) if name in held))


def _taken(reply: list[int], token: int) -> list[int]:
    """Adds a spoken token to the reply; what is then to be read: END where the reply is over."""
    if token == END:
        return [END]
    reply.append(token)
    return [token, END] if len(reply) >= MAX_REPLY_TOKENS else [token]


def _lesson(prompts: Sequence[list[int]]) -> Lesson:
    """What the messages teach: their words, not the frame around them."""
    longest = max(len(prompt) for prompt in prompts)
    if longest > SETTINGS.learn_every_tokens:
        raise InvalidRequest(
            f"a message of {longest} tokens is longer than the {SETTINGS.learn_every_tokens} that the engine learns "
            "at once: measure such messages with the engine",
            param="message",
        )
    ids_BT, lengths_B = _padded(prompts)
    counts_BT = torch.zeros_like(ids_BT, dtype=torch.float32)
    for row, prompt in enumerate(prompts):
        counts_BT[row, 1 : len(prompt) - 1] = 1.0
    return Lesson(ids_BT, lengths_B, counts_BT)


def _padded(tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in tokens)
    padded = [[*row, *[PAD] * (longest - len(row))] for row in tokens]
    return torch.tensor(padded), torch.tensor([len(row) for row in tokens])


def _rows(memory: Memory, rows: Sequence[int]) -> Memory:
    index = torch.tensor(rows)
    return {name: value[index] for name, value in memory.items()}


def _of_levels(memory: Memory) -> Memory:
    """What the CMS levels hold of a memory: all but Titans and the position."""
    return {name: value for name, value in memory.items() if level_of(name) != TITANS}


def _stored(memory: Memory) -> Memory:
    """The memory at the precision at which the store keeps it (`portable.py`), as the next turn finds it."""
    return {
        name: value.to(torch.bfloat16).to(value.dtype) if value.is_floating_point() else value
        for name, value in memory.items()
    }


def _as_stored(number: int, message: str, reply: str, surprise_nats: float, cut: bool) -> Turn:
    """A finished turn with what the worker reads of it; the rest is left empty. `cut`: the reply was at its limit."""
    report = MemoryReport(number, 0, True, surprise_nats, ())
    usage, timing = Usage(0, 0, 0), Timing(0.0, 0.0, 0.0, 0.0)
    return Turn("", "", number - 1, "", message, reply, "length" if cut else "stop", usage, report, timing)

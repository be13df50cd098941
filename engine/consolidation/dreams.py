"""Dreams: questions that a model asks itself after it has read a turn, and the replies it then gives.

What is told in a statement is asked for in a question, and weights that learned the one do not give the other. So the
model reads the turn alone, from a fresh memory, goes on from the beginnings of questions, and answers them. A dream is
kept where its reply is news: likely after the turn and not without it. Small talk dreams up nothing.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.consolidation.policy import GenerationPolicy
from engine.core import Turn
from engine.model.hope import Hope, Memory
from engine.model.shared import with_shared
from engine.tokenizer import ASSISTANT, END, NUM_SPECIAL, PAD, USER, Tokenizer

# How far the word that was said stands out for one who is sure of it.
CERTAIN_NATS = 16
ASKING, ANSWERING, DONE = range(3)


@dataclass(frozen=True)
class Dream:
    """A question and its reply, as one stream of tokens.

    Attributes:
        tokens: the user's frame, the question, the assistant's frame, the reply and its end.
        reply_at: where the assistant's frame stands: what it is followed by is learned.
        news: nats that the reply gained by what was read.
    """

    tokens: tuple[int, ...]
    reply_at: int
    news: float = 0.0

    @property
    def question(self) -> tuple[int, ...]:
        """The tokens up to the reply."""
        return self.tokens[: self.reply_at]


@dataclass(frozen=True)
class Example:
    """A dream, log-probabilities of how it was answered, of the places that count [N,V], and whose it is."""

    dream: Dream
    answer_NV: Tensor
    session: str = ""


@dataclass(frozen=True)
class Rows:
    """Dreams as a batch: tokens [B,T], lengths [B], and 1 where the next token belongs to a reply [B,T]."""

    tokens_BT: Tensor
    lengths_B: Tensor
    counts_BT: Tensor


class Dreamer:
    """Dreams of turns with one model.

    Args:
        model, tokenizer: the ones the turns were made with.
        openers: how questions begin.
        policy: how many dreams, how long, and what is news.
        shared: what the active generation knows; what is known already is no news.
    """

    def __init__(
        self, model: Hope, tokenizer: Tokenizer, openers: Sequence[str], policy: GenerationPolicy, shared: Memory
    ) -> None:
        self._model, self._tokenizer, self._policy = model, tokenizer, policy
        self._openers = [[USER, *tokenizer.encode(opener)] for opener in openers]
        self._ends = frozenset(at for at in range(model.config.vocab_size) if "?" in tokenizer.decode([at]))
        self.fresh = with_shared(model.initial_memory(1), shared)
        # By question: what resembles what was told, and is not known.
        self.quiet: dict[tuple[int, ...], Dream] = {}

    @torch.no_grad()
    def of_turn(self, turn: Turn, session: str, generator: torch.Generator) -> list[Example]:
        """What the turn gives to dream of, each question once; nothing where it told nothing.

        Dreams that are no news go to `quiet`, with the replies of one who was told nothing.

        Args:
            session: whose turn it is.
            generator: draws the questions, and their beginnings.
        """
        told = self._tokenizer.read_turn(turn.message, reply=bool(turn.reply))
        if turn.reply:
            told += [*self._tokenizer.encode(turn.reply), END]
        if self._policy.material == "turns":
            return [as_said(told, self._model.config.vocab_size, session)]
        _, after = self._model(torch.tensor([told]), self.fresh)
        cues_V = torch.zeros(self._model.config.vocab_size)
        cues_V[self._tokenizer.encode(turn.message)] = self._policy.cue_nats
        dreamt = self._dreams(after, self._policy.first_dreams, cues_V, generator)
        found = self._news(dreamt, after)
        if found:
            more = self._dreams(after, self._policy.more_dreams, cues_V, generator)
            dreamt, found = dreamt + more, found + self._news(more, after)
        news = {dream.question for dream in found}
        self.quiet |= {dream.question: dream for dream in dreamt if dream.question not in news}
        once = list({dream.question: dream for dream in found}.values())
        return [one for batch in batches(once) for one in examples(self._model, after, batch, session)]

    @torch.no_grad()
    def calm(self, messages: Sequence[str], shared: Memory) -> list[Dream]:
        """What a session that was told nothing replies to these under a generation."""
        questions = [self._tokenizer.read_turn(message, reply=True) for message in messages]
        memory = with_shared(self._model.initial_memory(1), shared)
        return [
            Dream(tuple(tokens), len(question) - 1)
            for question, tokens in zip(questions, self._go_on(memory, questions), strict=True)
            if tokens[-1] == END
        ]

    @torch.no_grad()
    def to_keep(
        self, messages: Sequence[str], shared: Memory, known: Container[tuple[int, ...]], generator: torch.Generator
    ) -> tuple[list[Dream], list[Dream]]:
        """What must stay as it is: dreams to learn from, and others to ask afterwards.

        Small talk; questions that come to the mind of one who was told nothing, most of which have no answer; and, to
        learn from, what resembles what was told and was no news.

        Args:
            messages: of the small talk.
            shared: what is known before.
            known: questions that now have an answer.
        """
        calm = self.calm(messages, shared)
        no_cues_V = torch.zeros(self._model.config.vocab_size)
        idle = [
            one
            for _ in range(0, self._policy.idle_dreams, 32)
            for one in self._dreams(self.fresh, min(32, self._policy.idle_dreams), no_cues_V, generator)
        ]
        idle = [one for one in {one.question: one for one in idle}.values() if one.question not in known]
        quiet = [one for one in self.quiet.values() if one.question not in known]
        # Of small talk all of it, what the user says too: that is what a language sounds like.
        return [Dream(one.tokens, 0) for one in calm] + quiet + idle[::2], calm + idle[1::2]

    def _dreams(self, memory: Memory, count: int, cues_V: Tensor, generator: torch.Generator) -> list[Dream]:
        chosen = torch.randint(len(self._openers), (count,), generator=generator).tolist()
        streams = self._go_on(memory, [self._openers[at] for at in chosen], cues_V, generator)
        return [
            Dream(tuple(tokens), tokens.index(ASSISTANT))
            for tokens in streams
            if tokens[-1] == END and ASSISTANT in tokens
        ]

    def _news(self, dreams: list[Dream], memory: Memory) -> list[Dream]:
        """The dreams whose replies the memory makes likelier than a fresh one does."""
        if not dreams:
            return []
        rows = as_rows(dreams)
        gained_B = likelihood(self._model, memory, rows) - likelihood(self._model, self.fresh, rows)
        return [
            Dream(dream.tokens, dream.reply_at, float(gained))
            for dream, gained in zip(dreams, gained_B, strict=True)
            if gained > self._policy.news_nats
        ]

    def _go_on(
        self,
        memory: Memory,
        starts: Sequence[Sequence[int]],
        cues_V: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Streams that go on from these: a question drawn at random, up to its mark, and the likeliest reply."""
        streams = [list(start) for start in starts]
        states = [ANSWERING if start[-1] == ASSISTANT else ASKING for start in starts]
        pending = [list(start) for start in starts]
        rows = {name: value.expand(len(starts), *value.shape[1:]) for name, value in memory.items()}
        for _ in range(self._policy.longest_dream):
            tokens_BT, lengths_B = _padded(pending)
            logits_BTV, rows = self._model(tokens_BT, rows, lengths_B)
            logits_BV = logits_BTV[torch.arange(len(starts)), lengths_B - 1]
            words_BV = logits_BV.clone()
            words_BV[:, :NUM_SPECIAL] = -torch.inf
            replies_BV = words_BV.clone()
            replies_BV[:, END] = logits_BV[:, END]
            said = replies_BV.argmax(-1).tolist()
            asked = said if cues_V is None else self._drawn(words_BV + cues_V, generator)
            for at, state in enumerate(states):
                token = {ASKING: asked[at], ANSWERING: said[at], DONE: END}[state]
                pending[at] = [token]
                if state == ASKING and token in self._ends:
                    pending[at], states[at] = [token, ASSISTANT], ANSWERING
                elif token == END:
                    states[at] = DONE
                if state != DONE:
                    streams[at] += pending[at]
            if all(state == DONE for state in states):
                break
        return streams

    def _drawn(self, logits_BV: Tensor, generator: torch.Generator | None) -> list[int]:
        chances = torch.softmax(logits_BV / self._policy.dream_temperature, -1)
        drawn: list[int] = torch.multinomial(chances, 1, generator=generator)[:, 0].tolist()
        return drawn


def as_said(tokens: Sequence[int], vocab_size: int, session: str) -> Example:
    """A turn as if someone who was sure of every word had dreamt it."""
    sure_NV = torch.nn.functional.one_hot(torch.tensor(tokens[1:]), vocab_size) * CERTAIN_NATS
    return Example(Dream(tuple(tokens), 0), torch.log_softmax(sure_NV.float(), -1).half(), session)


def examples(model: Hope, memory: Memory, dreams: Sequence[Dream], session: str = "") -> list[Example]:
    """Dreams with the answers that this memory (batch size 1) gives; at least one dream."""
    rows = as_rows(dreams)
    with torch.no_grad():
        chances_BTV = log_chances(model, memory, rows)
    return [
        Example(dream, chances_TV[counts_T > 0].half(), session)
        for dream, chances_TV, counts_T in zip(dreams, chances_BTV, rows.counts_BT, strict=True)
    ]


def as_rows(dreams: Sequence[Dream]) -> Rows:
    """Dreams of different lengths as one batch."""
    tokens_BT, lengths_B = _padded([dream.tokens for dream in dreams])
    counts_BT = torch.zeros(tokens_BT.shape)
    for at, dream in enumerate(dreams):
        counts_BT[at, dream.reply_at : len(dream.tokens) - 1] = 1.0
    return Rows(tokens_BT, lengths_B, counts_BT)


def batches(dreams: Sequence[Dream], size: int = 32) -> Iterator[Sequence[Dream]]:
    """Parts of so many."""
    for start in range(0, len(dreams), size):
        yield dreams[start : start + size]


def log_chances(model: Hope, memory: Memory, rows: Rows) -> Tensor:
    """Log-probabilities of every next token [B,T,V], read from this memory (batch size 1)."""
    spread = {name: value.expand(len(rows.tokens_BT), *value.shape[1:]) for name, value in memory.items()}
    logits_BTV, _ = model(rows.tokens_BT, spread, rows.lengths_B)
    return torch.log_softmax(logits_BTV, -1)


def likelihood(model: Hope, memory: Memory, rows: Rows) -> Tensor:
    """Log-likelihood of every row's reply [B] in nats, read from this memory (batch size 1)."""
    chances_BTV = log_chances(model, memory, rows)[:, :-1]
    own_BT = chances_BTV.gather(-1, rows.tokens_BT[:, 1:, None])[..., 0]
    return (own_BT * rows.counts_BT[:, :-1]).sum(1)


def _padded(streams: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(stream) for stream in streams)
    tokens_BT = torch.tensor([[*stream, *[PAD] * (longest - len(stream))] for stream in streams])
    return tokens_BT, torch.tensor([len(stream) for stream in streams])

"""The dreamer: it reads a turn alone, from a fresh memory, asks itself what could be asked about it, and answers.

What is told in a statement is asked for in a question, and weights that learned the one do not give the other. Training
taught the model to say what could be asked about the turn before (`training/facts/small_talk_to_ask.toml`). A dream is
kept where its reply is news: likely after the turn and not without it. Small talk dreams up nothing.

Who has learned one answer gives it too readily. So more questions go on from beginnings of questions, with the turn's
words made likelier. Where the reply is news, and the model might have named the question, it is a dream like others;
else it is learned that this is not known. What is told otherwise later must still be heard (`otherwise.py`).

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import Tensor

from engine.consolidation.dreams import (
    Dream,
    Example,
    Kept,
    as_read,
    as_rows,
    as_said,
    batches,
    examples,
    less_sure,
    likelihood,
    once,
    padded,
)
from engine.consolidation.otherwise import Otherwise, holds, value_of
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import Suite
from engine.core import Turn
from engine.model.hope import Hope, Memory
from engine.model.shared import with_shared
from engine.tokenizer import ASSISTANT, END, NUM_SPECIAL, USER, Tokenizer

ASKING, ANSWERING, DONE = range(3)


class Dreamer:
    """Dreams of turns with one model.

    Args:
        model, tokenizer: the ones the turns were made with.
        suite: what to ask for, and how questions begin.
        policy: how many dreams, how long, and what is news.
        shared: what the active generation knows; what is known already is no news.
        earlier: dreams of the same session; where a turn answers them anew, they are dreamt of anew.
    """

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        suite: Suite,
        policy: GenerationPolicy,
        shared: Memory,
        earlier: Sequence[Dream] = (),
    ) -> None:
        self._model, self.tokenizer, self._policy, self._earlier = model, tokenizer, policy, earlier
        self._request = tokenizer.read_turn(suite.request, reply=True)
        self._nothing = tokenizer.encode(suite.nothing)
        self._openers = [[USER, *tokenizer.encode(opener)] for opener in suite.openers]
        self._ends = frozenset(at for at in range(model.config.vocab_size) if "?" in tokenizer.decode([at]))
        self.fresh = with_shared(model.initial_memory(1), shared)
        self.quiet: dict[tuple[int, ...], Dream] = {}  # by question: what resembles what was told, and is not known
        # Turns told with another value, and how one answers who knows nothing else.
        self.otherwise: list[Example] = []
        # These and others like them, to ask afterwards; as replies those values, which must be named.
        self.heard: list[Dream] = []
        self._exchange = Otherwise(tokenizer)

    @torch.no_grad()
    def of_turn(self, turn: Turn, session: str, generator: torch.Generator) -> list[Example]:
        """What the turn gives to dream of, each question once; nothing where it told nothing.

        Questions that only resemble it, and have no answer, go to `quiet`.

        Args:
            session: whose turn it is.
            generator: draws the questions.
        """
        told = as_read(self.tokenizer, turn)
        if self._policy.material == "turns":
            return [as_said(told, self._model.config.vocab_size, session)]
        after = self.after(turn)
        found = self.news(self._on_request(after, self._policy.first_dreams, generator), after)
        if not found:
            return []
        found += self.news(self._on_request(after, self._policy.more_dreams, generator), after)
        found = once(found)
        least = float(self._fitting(after, found).median()) - self._policy.fitting_nats
        near = self._near(after, turn.message, generator)
        near += self.replied(after, self._exchanged(told, found, generator))
        # What was asked for earlier may have another answer now.
        asked = [*near, *self.replied(after, [dream.question for dream in self._earlier])]
        news = {one.question: one for one in self.news(asked, after)}
        fitting = zip(asked, self._fitting(after, asked), strict=True)
        found += [news[one.question] for one, nats in fitting if one.question in news and float(nats) >= least]
        self.quiet |= {one.question: one for one in near if one.question not in news}
        self.otherwise += self._told_otherwise(told, found, session, generator)
        return self._answered(told, once(found), after, session)

    @torch.no_grad()
    def after(self, turn: Turn) -> Memory:
        """A fresh memory that has read this turn alone."""
        after: Memory = self._model(torch.tensor([as_read(self.tokenizer, turn)]), self.fresh)[1]
        return after

    @torch.no_grad()
    def calm(self, messages: Sequence[str], shared: Memory) -> list[Dream]:
        """What a session that was told nothing replies to these under a generation."""
        return self.replies([self.tokenizer.read_turn(message, reply=True)[:-1] for message in messages], shared)

    @torch.no_grad()
    def replies(self, streams: Sequence[Sequence[int]], shared: Memory) -> list[Dream]:
        """The same for what was said before, the question last, in tokens; without replies that come to no end."""
        return self.replied(with_shared(self._model.initial_memory(1), shared), streams)

    @torch.no_grad()
    def to_keep(
        self, messages: Sequence[str], shared: Memory, known: Container[tuple[int, ...]], generator: torch.Generator
    ) -> Kept:
        """What must stay as it is.

        Args:
            messages: of the small talk.
            shared: what is known before.
            known: questions that now have an answer.
        """
        calm = self.calm(messages, shared)
        idle = self._begun(self.fresh, self._policy.idle_dreams, None, generator)
        idle = [one for one in idle if one.question not in known]
        quiet = [one for one in self.quiet.values() if one.question not in known]
        # Of small talk all of it, what the user says too: that is what a language sounds like.
        return Kept([Dream(one.tokens, 0) for one in calm] + idle[::2], quiet, calm + idle[1::2])

    def _answered(self, told: Sequence[int], found: list[Dream], after: Memory, session: str) -> list[Example]:
        """How the turn lets one answer these dreams, as sure as one may be of what it told."""
        known, unknown = (
            [one for batch in batches(found) for one in examples(self._model, memory, batch, session)]
            for memory in (after, self.fresh)
        )
        values = [value_of(told, dream) for dream in found]
        return list(map(less_sure, known, unknown, values, [self._policy.certainty] * len(found)))

    def _exchanged(
        self, told: Sequence[int], found: Sequence[Dream], generator: torch.Generator
    ) -> list[tuple[int, ...]]:
        """Questions of these dreams that ask for something else by one word."""
        chosen = torch.randint(len(found), (self._policy.exchanged_dreams,), generator=generator).tolist()
        asked = [self._exchange.asked(told, found[at], generator) for at in chosen]
        return [question for question in asked if question is not None]

    def _told_otherwise(
        self, told: Sequence[int], found: Sequence[Dream], session: str, generator: torch.Generator
    ) -> list[Example]:
        """Some of these dreams' questions after the turn with another value; where the reply names that one.

        Every other time the turn itself comes first, as where something has changed.
        """
        chosen = torch.randperm(len(found), generator=generator)[: self._policy.otherwise_dreams].tolist()
        streams: dict[tuple[int, ...], tuple[int, ...]] = {}
        for number, at in enumerate(chosen):
            other = self._exchange.told(told, found[at], generator)
            if other is not None:
                before = told if number % 2 else ()
                streams[(*before, *other[0], *found[at].question)] = other[1]
        replied = self.replied(self.fresh, list(streams))
        heard = [one for one in replied if holds(one.tokens[one.reply_at + 1 :], streams[one.question])]
        self.heard += [one.replying(streams[one.question]) for one in heard]
        learnt = [one for at, one in enumerate(heard) if at % self._policy.held_out]
        return examples(self._model, self.fresh, learnt, session) if learnt else []

    def _on_request(self, after: Memory, count: int, generator: torch.Generator) -> list[Dream]:
        """Questions that the model says could be asked about the turn, with its replies to them."""
        return self.replied(after, self.asked_about(after, [()] * count, generator))

    @torch.no_grad()
    def asked_about(
        self, memory: Memory, streams: Sequence[Sequence[int]], generator: torch.Generator
    ) -> list[tuple[int, ...]]:
        """These streams, each followed by a question that could be asked then; without those that suggest none."""
        starts = [(*stream, *self._request) for stream in streams]
        asked = []
        for stream in self.go_on(memory, starts, frozenset({END}), generator):
            at = len(stream) - stream[::-1].index(ASSISTANT)
            if stream[at:-1] and stream[at:-1] != self._nothing:
                asked.append((*stream[: at - len(self._request)], USER, *stream[at:-1]))
        return asked

    def _near(self, after: Memory, message: str, generator: torch.Generator) -> list[Dream]:
        """Questions that the turn's words suggest."""
        cues_V = torch.zeros(self._model.config.vocab_size)
        cues_V[self.tokenizer.encode(message)] = self._policy.cue_nats
        return self._begun(after, self._policy.near_dreams, cues_V, generator)

    def _fitting(self, after: Memory, dreams: Sequence[Dream]) -> Tensor:
        """How likely the model is to name each question as one that could be asked [B], in nats."""
        if not dreams:
            return torch.zeros(0)
        asked = [Dream((*self._request, *dream.question[1:], END), len(self._request) - 1) for dream in dreams]
        return torch.cat([likelihood(self._model, after, as_rows(batch)) for batch in batches(asked)])

    def news(self, dreams: list[Dream], memory: Memory) -> list[Dream]:
        """The dreams whose replies the memory makes likelier than a fresh one does; who asks back has not answered."""
        dreams = [dream for dream in dreams if not self._ends.intersection(dream.tokens[dream.reply_at :])]
        if not dreams:
            return []
        rows = as_rows(dreams)
        gained_B = likelihood(self._model, memory, rows) - likelihood(self._model, self.fresh, rows)
        return [
            Dream(dream.tokens, dream.reply_at, float(gained))
            for dream, gained in zip(dreams, gained_B, strict=True)
            if gained > self._policy.news_nats
        ]

    def _begun(self, memory: Memory, count: int, cues_V: Tensor | None, generator: torch.Generator) -> list[Dream]:
        """Questions that go on from one of the beginnings, with this memory's replies to them."""
        chosen = torch.randint(len(self._openers), (count,), generator=generator).tolist()
        streams = self.go_on(memory, [self._openers[at] for at in chosen], self._ends, generator, cues_V)
        return self.replied(memory, streams)

    @torch.no_grad()
    def replied(self, memory: Memory, questions: Sequence[Sequence[int]]) -> list[Dream]:
        """The likeliest replies of a memory to questions, each once; without those that come to no end."""
        once = sorted({(*question, ASSISTANT) for question in questions})
        if not once:
            return []
        streams = self.go_on(memory, once, frozenset({END}))
        return [Dream(tuple(stream), len(stream) - 1 - stream[::-1].index(ASSISTANT)) for stream in streams]

    @torch.no_grad()
    def go_on(
        self,
        memory: Memory,
        starts: Sequence[Sequence[int]],
        ends: frozenset[int],
        generator: torch.Generator | None = None,
        cues_V: Tensor | None = None,
    ) -> list[list[int]]:
        """What these streams go on to say up to one of the `ends`; others are left out.

        Args:
            generator: draws the words; without one the likeliest is said.
            cues_V: what words gain.
        """
        ended: list[list[int]] = []
        for part in batches(starts):
            ended += self._part_goes_on(memory, part, ends, generator, cues_V)
        return ended

    def _part_goes_on(
        self,
        memory: Memory,
        starts: Sequence[Sequence[int]],
        ends: frozenset[int],
        generator: torch.Generator | None,
        cues_V: Tensor | None,
    ) -> list[list[int]]:
        streams = [list(start) for start in starts]
        # The streams in the batch, and those among them that have come to no end.
        batch, going = list(range(len(streams))), set(range(len(streams)))
        rows = {name: value.expand(len(batch), *value.shape[1:]) for name, value in memory.items()}
        pending = streams
        for _ in range(self._policy.longest_dream):
            tokens_BT, lengths_B = padded(pending)
            hidden_BTD, rows = self._model.hidden(tokens_BT, rows, lengths_B)
            logits_BV = self._model.logits(hidden_BTD[torch.arange(len(batch)), lengths_B - 1])
            said = self._said(logits_BV, ends, generator, cues_V)
            for token, at in zip(said, batch, strict=True):
                if at in going:
                    streams[at].append(token)
                    going -= {at} if token in ends else set()
            if not going:
                break
            if 2 * len(going) <= len(batch):
                kept = [place for place, at in enumerate(batch) if at in going]
                rows = {name: value[kept] for name, value in rows.items()}
                batch, said = [batch[place] for place in kept], [said[place] for place in kept]
            pending = [[token] for token in said]
        return [stream for at, stream in enumerate(streams) if at not in going]

    def _said(
        self, logits_BV: Tensor, ends: frozenset[int], generator: torch.Generator | None, cues_V: Tensor | None
    ) -> list[int]:
        words_BV = logits_BV.clone()
        words_BV[:, [at for at in range(NUM_SPECIAL) if at not in ends]] = -torch.inf
        if generator is None:
            return words_BV.argmax(-1).tolist()
        warmed_BV = (words_BV + (0.0 if cues_V is None else cues_V)) / self._policy.dream_temperature
        chances_BV = torch.softmax(warmed_BV, -1)
        drawn: list[int] = torch.multinomial(chances_BV, 1, generator=generator)[:, 0].tolist()
        return drawn

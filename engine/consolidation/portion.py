"""A portion of a session's turns on its way into `cms.medium`, by dreams: taken in turn by turn, then step by step.

What was dreamt is kept in the memory itself, so that later portions rehearse it, and versions, forks and exports carry
it with them. Knows no store and no time: who calls may look around between any two calls.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.config import CMS_MEDIUM
from engine.consolidation.at_home import at_home
from engine.consolidation.distill import Distilled, Material, draw, step, with_step_state, without_step_state
from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Dream, Example, batches, examples
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import Suite
from engine.core import Turn
from engine.model.hope import REHEARSED_TOKENS, Hope, Memory, rehearsal_name
from engine.model.learning import level_named
from engine.model.portable import level_of
from engine.model.shared import with_shared
from engine.tokenizer import END, Tokenizer

REHEARSAL = rehearsal_name(CMS_MEDIUM)


class Portion:
    """Dreams of some turns, and what `cms.medium` knows as it learns them.

    Args:
        model, tokenizer: the ones the session's memory grew in.
        suite: how dreams begin, and what is to stay calm.
        policy: how many dreams and steps.
        medium: the session's `cms.medium` (batch size 1); it is not changed.
        shared: what the active generation knows (batch size 1).
        home: the session's memory (batch size 1); its `cms.medium` does not count.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        model: Hope,
        tokenizer: Tokenizer,
        suite: Suite,
        policy: GenerationPolicy,
        medium: Memory,
        shared: Memory,
        home: Memory,
        seed: int = 0,
    ) -> None:
        self._model, self._suite, self._policy = model, suite, policy
        self._level = level_named(model, CMS_MEDIUM)
        self._before, self._shared = medium, shared
        self._home = {name: value for name, value in {**home, **shared}.items() if level_of(name) != CMS_MEDIUM}
        # The dreamer does not know what the session told earlier: what has changed would be told to deaf ears.
        self._earlier = read_rehearsal(medium, model)
        self._dreamer = Dreamer(model, tokenizer, suite, policy, shared, self._earlier)
        self._generator = torch.Generator().manual_seed(seed)
        self._rng = random.Random(seed)
        self._told: dict[tuple[int, ...], Example] = {}
        self._telling: list[Turn] = []
        self._material: Material | None = None
        self._learning: Memory = with_step_state(model, self._level, medium, policy)

    def take_in(self, turn: Turn) -> None:
        """Dreams of the next turn; its reply to a question is the one that holds."""
        if turn.memory.surprise <= self._policy.surprise_ceiling:
            dreamt = self._dreamer.of_turn(turn, "", self._generator)
            self._told |= {example.dream.question: example for example in dreamt}
            self._telling += [turn] if dreamt else []

    def prepare(self) -> bool:
        """Answers what is to stay as it is; False where the turns told nothing."""
        if not self._told:
            return False
        earlier = [dream for dream in self._earlier if dream.question not in self._told]
        known = {*self._told, *(dream.question for dream in earlier)}
        kept = self._dreamer.to_keep(self._suite.calm, {**self._shared, **self._before}, known, self._generator)
        asked = [one.question for one in (*kept.calm, *kept.quiet) if one.reply_at]
        slower, home = {**self._shared, **self._before}, {**self._home, **self._before}
        own = at_home(self._model, self._dreamer, home, slower, self._telling, asked)
        calm = [own, own, self._answered(kept.calm), self._dreamer.otherwise]
        self._material = Material(list(self._told.values()), self._answered(earlier), calm)
        return True

    def step(self, number: int) -> Distilled:
        """The next of `num_steps` steps."""
        assert self._material is not None
        chosen, weights = draw(self._material, self._policy, self._rng)
        num_steps = self._policy.num_steps
        rate = min(1.0, (number + 1) / 10, 2.0 * (num_steps - number) / num_steps)
        # The level's step sees a memory that knows what sessions share.
        done = step(
            self._model,
            self._level,
            self._learning,
            chosen,
            weights,
            self._policy,
            rate,
            beside=self._shared,
            home=self._home,
        )
        self._learning = done.shared
        return done

    @property
    def medium(self) -> Memory:
        """The session's `cms.medium` as it is now, with what later portions will rehearse."""
        learned = without_step_state(self._level, self._learning)
        rehearsal = self._before[REHEARSAL]
        if self._material is not None:
            earlier = [example.dream for example in self._material.rehearsal]
            rehearsal = write_rehearsal([*earlier, *(one.dream for one in self._told.values())], rehearsal, self._rng)
        return {**self._before, **learned, REHEARSAL: rehearsal}

    def _answered(self, dreams: Sequence[Dream]) -> list[Example]:
        """As the session's slower levels answer them before they learn: they are to keep that, not more."""
        before = with_shared(self._model.initial_memory(1), {**self._shared, **self._before})
        return [one for batch in batches(dreams) for one in examples(self._model, before, batch)]


def write_rehearsal(dreams: Sequence[Dream], into: Tensor, rng: random.Random) -> Tensor:
    """As many of the dreams as there is room for, drawn at random, as a tensor of the memory.

    Args:
        into: gives shape and type [1, dreams, 1 + tokens]: where the reply begins, then tokens, then zeros.
    """
    room = into.shape[1]
    short = [dream for dream in dreams if len(dream.tokens) <= REHEARSED_TOKENS]
    kept = rng.sample(short, min(room, len(short)))
    rows = torch.zeros_like(into)
    for at, dream in enumerate(kept):
        rows[0, at, 0] = dream.reply_at
        rows[0, at, 1 : 1 + len(dream.tokens)] = torch.tensor(dream.tokens, dtype=into.dtype)
    return rows


def read_rehearsal(memory: Memory, model: Hope) -> list[Dream]:
    """The dreams that `write_rehearsal` kept; rows that can be none, as a file from outside may hold, are left out."""
    found = []
    for reply_at, *tokens in memory[REHEARSAL][0].tolist():
        end = len(tokens) - next((at for at, token in enumerate(reversed(tokens)) if token == END), len(tokens))
        stream = tokens[:end]
        fits = all(0 <= token < model.config.vocab_size for token in stream)
        if fits and 0 < reply_at < len(stream) - 1:
            found.append(Dream(tuple(stream), reply_at))
    return found

"""Turns that nobody told: the model makes up what a user might say, what could be asked about it, and the answer.

Who has learned what some sessions told, and that all else is unknown, also comes to say "unknown" of what it has just
been told: each lesson lifts that reply a little, and lessons add up. So some rows of every lesson are such made-up
turns with a question behind them, answered as the model does that has learned nothing yet.
"""

from __future__ import annotations

import torch

from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Dream, Example, as_rows, batches, examples, likelihood
from engine.consolidation.otherwise import value_of
from engine.consolidation.policy import GenerationPolicy
from engine.model.hope import Hope
from engine.tokenizer import ASSISTANT, END, NUM_SPECIAL, USER, Tokenizer


@torch.no_grad()
def made_up(model: Hope, dreamer: Dreamer, policy: GenerationPolicy, generator: torch.Generator) -> list[Example]:
    """Made-up turns with a question each, whose answer names what the turn said and would not be said without it.

    Args:
        dreamer: goes on and answers.
        policy: how many are tried, and what is news.
        generator: draws turns and questions.
    """
    nobody = model.initial_memory(1)
    said = dreamer.go_on(nobody, [[USER]] * policy.made_up_turns, _full_stops(dreamer.tokenizer), generator)
    told = dreamer.go_on(nobody, [[*one, ASSISTANT] for one in said], frozenset({END}))
    found: list[Example] = []
    for part in batches(dreamer.replied(nobody, dreamer.asked_about(nobody, told, generator))):
        bare = [_without_turn(one) for one in part]
        gained_B = likelihood(model, nobody, as_rows(part)) - likelihood(model, nobody, as_rows(bare))
        heard = [
            one
            for one, alone, gained in zip(part, bare, gained_B.tolist(), strict=True)
            if gained > policy.news_nats and value_of(one.tokens[: -len(alone.tokens)], alone) is not None
        ]
        found += examples(model, nobody, heard) if heard else []
    return found


def _full_stops(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a statement: users' messages are read, so that the model never learned to end them itself."""
    return frozenset(at for at in range(NUM_SPECIAL, tokenizer.vocab_size) if tokenizer.decode([at]) in (".", "!"))


def _without_turn(one: Dream) -> Dream:
    """The question alone, with its reply."""
    at = len(one.question) - 1 - one.question[::-1].index(USER)
    return Dream(one.tokens[at:], one.reply_at - at)

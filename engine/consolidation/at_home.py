"""What must stay as it is, asked of the session itself, with its own memory.

What `cms.medium` adds to a session's memory comes on top of all else there: learned from a fresh memory alone, it would
tip questions that the session is already half inclined to answer. And many a session is so inclined: full of names, it
gives one of them for an answer to what it was never told. Where it differs from one who was told nothing, and none of
its turns, read alone, answers the question, that is no knowledge, and it learns to say so.

Knows no steps: what comes of it is rows for `distill.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Example, batches, examples
from engine.consolidation.otherwise import value_of
from engine.core import Turn
from engine.model.hope import Hope, Memory
from engine.model.shared import with_shared

Question = tuple[int, ...]


@torch.no_grad()
def at_home(
    model: Hope, dreamer: Dreamer, home: Memory, slower: Memory, turns: Sequence[Turn], questions: Sequence[Question]
) -> list[Example]:
    """Questions with the session's own replies, or where those are none of what it was told, with slower levels'.

    Args:
        dreamer: of the session; it answers.
        home: the session's memory (batch size 1), with what it knew before of what is learned now.
        slower: the levels that last, before they learn (batch size 1).
        turns: those that told something since.
        questions: in tokens; replies that come to no end are left out.
    """
    fresh = with_shared(model.initial_memory(1), slower)
    untold = {one.question: one for one in dreamer.replied(fresh, questions)}
    own = [one for one in dreamer.replied(home, questions) if one.question in untold]
    apart = {one.question: one for one in own if one.tokens != untold[one.question].tokens}
    for turn in turns:
        message = dreamer.tokenizer.encode(turn.message)
        # A reply that says nothing of what the turn says is not from there.
        asked = [question for question, one in apart.items() if value_of(message, one) is not None]
        if asked:
            after = dreamer.after(turn)
            for one in dreamer.news(dreamer.replied(after, asked), after):
                del apart[one.question]
    kept = [one for one in own if one.question not in apart]
    parts = ((home, kept), (fresh, [untold[question] for question in apart]))
    return [
        one
        for memory, dreams in parts
        for batch in batches(dreams)
        for one in examples(model, memory, batch, at_home=True)
    ]

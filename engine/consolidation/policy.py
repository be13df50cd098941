"""What a session's consolidation takes in and how hard it works: numbers in, numbers out.

Which turns are replayed, what each of them weighs, how many steps that takes. Knows no torch, no store and no
clock: when a session is handed over is the engine's and the queue's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReplayPolicy:
    """Thresholds of a consolidation. The bounds keep one portion within seconds of one slow core.

    Attributes:
        most_turns, most_tokens: a portion takes turns up to either, but always one. It is committed by itself,
            so that a kill costs one portion at most.
        piece_tokens: a longer turn is replayed in pieces of this size.
        rows_per_batch: pieces that run together in one pass.
        num_steps: gradient steps over the whole portion.
        rate_per_turn, most_rate: factor on the level's learning rate. A step is the mean over the turns, so
            the factor grows with them, else each would move less the more there are.
        surprise_floor, surprise_ceiling: bounds of a turn's weight, relative to the portion's mean surprise.
        dreams: how `cms.medium` learns from dreams of the turns; None for replay alone. With `num_steps` 0 there is no
            replay.
    """

    most_turns: int = 16
    most_tokens: int = 4096
    piece_tokens: int = 256
    rows_per_batch: int = 8
    num_steps: int = 16
    rate_per_turn: float = 2.5
    most_rate: float = 20.0
    surprise_floor: float = 0.5
    surprise_ceiling: float = 2.0
    dreams: GenerationPolicy | None = None

    def next_turns(self, num_turns: int, num_consolidated: int) -> range:
        """Indices of the turns that may be taken in next, oldest first; empty where there is nothing new."""
        first = min(num_consolidated, num_turns)
        return range(first, min(num_turns, first + self.most_turns))

    def num_within_budget(self, tokens_by_turn: Sequence[int]) -> int:
        """How many of these turns, from the first on, one portion takes: at least one, if there is one."""
        total = 0
        for count, tokens in enumerate(tokens_by_turn):
            total += tokens
            if count > 0 and total > self.most_tokens:
                return count
        return len(tokens_by_turn)

    def weights(self, surprise_by_turn: Sequence[float]) -> list[float]:
        """What each turn counts for: its surprise over the mean, bounded; they add up to 1."""
        if not surprise_by_turn:
            return []
        mean = sum(surprise_by_turn) / len(surprise_by_turn)
        if mean <= 0.0:
            return [1.0 / len(surprise_by_turn)] * len(surprise_by_turn)
        bounded = [min(max(value / mean, self.surprise_floor), self.surprise_ceiling) for value in surprise_by_turn]
        return [value / sum(bounded) for value in bounded]

    def rate(self, num_turns: int) -> float:
        """Factor on the level's learning rate for a portion of so many turns."""
        return min(self.most_rate, self.rate_per_turn * num_turns)


@dataclass(frozen=True)
class GenerationPolicy:
    """What a tenant's consolidation takes in, how hard it works, and what a candidate must keep.

    Attributes:
        most_turns, most_turns_of_session: taken in at once; the rest waits for the next time.
        surprise_ceiling: turns above it in nats are no language: noise is not knowledge.
        material: `dreams`, or `turns`: what was said, read again, for comparison.
        first_dreams, more_dreams: dreamt of every turn; the rest only where the first brought news.
        near_dreams: questions that only resemble what was told, of a turn that brought news.
        exchanged_dreams: questions of such dreams with one word exchanged.
        otherwise_dreams: questions about such a turn with another value in it, which it is learned to heed.
        certainty: with which a value is named that was told; the rest is what would be said there without it. What is
            told later, in whatever words, must be able to outweigh it.
        fitting_nats: how much less likely than others a question must be to be no question about the turn.
        news_nats: a dream counts where its reply is so much likelier after the turn than without it.
        dream_temperature: of the questions; replies are the most likely ones.
        cue_nats: what the words of the turn gain in the questions that resemble it.
        longest_dream: tokens of a question and its reply.
        held_out: one in so many of a session's dreams is kept for the gate.
        most_share: of a step that one session may have, unless so few contribute.
        num_steps, rows_per_step: of the distillation.
        idle_dreams: questions dreamt up from nothing, to stay unanswered.
        made_up_turns: turns that nobody told, which must still be heard.
        dream_share, rehearsal_share: of the rows of a step; the rest is calm.
        elastic_strength: of a spring on the weights that matter to what must stay; 0 for none.
        optimizer, learning_rate, max_update_norm: of the steps (`engine.config.LEVEL_OPTIMIZERS`).
        most_drift: bound on the norm of what a generation knows.
        most_rehearsal: dreams kept of one generation, and of all of them together times four.
        keep_generations: the oldest others are removed.
        least_uptake: share of the held-out dreams that a fresh session must answer as the dreamer did, word for word.
        least_retention: share of what the parent still knew of earlier generations.
        least_calm: share of replies, to what nobody told, that still say what they said.
        least_heard: share of what the parent names of what a session is told otherwise than those that contributed; by
            default it is shown and refuses nothing, for of a few facts too little is asked to judge by.
        most_perplexity: times the parent's on the fixed text, or that of a model that learned nothing if that is more.
        most_attempts: candidates made at most of one consolidation, to find who spoils it.
    """

    most_turns: int = 256
    most_turns_of_session: int = 64
    surprise_ceiling: float = 9.0
    material: str = "dreams"
    first_dreams: int = 8
    more_dreams: int = 24
    near_dreams: int = 32
    exchanged_dreams: int = 24
    otherwise_dreams: int = 6
    certainty: float = 0.7
    fitting_nats: float = 6.0
    news_nats: float = 2.0
    dream_temperature: float = 0.8
    cue_nats: float = 3.0
    longest_dream: int = 40
    held_out: int = 5
    most_share: float = 0.25
    idle_dreams: int = 128
    made_up_turns: int = 128
    num_steps: int = 200
    rows_per_step: int = 24
    dream_share: float = 0.35
    rehearsal_share: float = 0.25
    elastic_strength: float = 0.0
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    max_update_norm: float = 1.0
    most_drift: float = 32.0
    most_rehearsal: int = 128
    keep_generations: int = 16
    least_uptake: float = 0.05
    least_retention: float = 0.8
    least_calm: float = 0.8
    least_heard: float = 0.0
    most_perplexity: float = 1.02
    most_attempts: int = 8

    def share_of_session(self, num_sessions: int) -> float:
        """The most of a step that one of so many sessions may have."""
        return max(self.most_share, 1.0 / max(1, num_sessions))


# A session's own consolidation: fewer dreams than a tenant's and a smaller level, many times a day.
SESSION_DREAMS = GenerationPolicy(
    first_dreams=6,
    more_dreams=12,
    near_dreams=16,
    idle_dreams=64,
    certainty=0.6,
    num_steps=60,
    rows_per_step=20,
    dream_share=0.4,
    rehearsal_share=0.2,
    learning_rate=6e-3,
)
SESSION_POLICY = ReplayPolicy(num_steps=0, dreams=SESSION_DREAMS)

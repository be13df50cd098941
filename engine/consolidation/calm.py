"""Whether a reply to what nobody told stayed as it was: not word for word, but in what it says.

A model that learns anything words its small talk otherwise here and there, and says in another way that it does not
know. Neither is a loss. A loss is a reply that names what others told, one that no longer says that it does not know,
and one that says so where something was said before. What it is to say "I don't know" is not written down anywhere:
it is whatever the parent replies to several of these questions. Knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from engine.consolidation.dreams import Dream

Tokens = tuple[int, ...]

# So many tokens in a row that only the learned replies have are a quotation of them.
QUOTATION = 3


def share_kept(
    was: Sequence[Dream], same: Iterable[Tokens], now: Mapping[Tokens, Tokens], told: Sequence[Dream]
) -> float:
    """The share of calm replies that stayed as they were.

    Args:
        was: what the parent replies, at least one.
        same: the questions to which the candidate's reply is the same, word for word.
        now: by question, what the candidate replies to the others; what is not here came to no end and is lost.
        told: what the candidate learned.
    """
    unchanged = set(same)
    before = Counter(_reply(one) for one in was)
    after = Counter(_reply(one) if one.question in unchanged else now.get(one.question, ()) for one in was)
    commonplace = {reply for reply, times in before.items() if times > 1}
    repeated = {reply for reply, times in after.items() if times > 1}
    own = {stretch for one in was for stretch in _stretches(one.tokens)}
    foreign = {stretch for one in told for stretch in _stretches(one.tokens[one.reply_at :])} - own

    def kept(one: Dream) -> bool:
        if one.question in unchanged:
            return True
        reply = now.get(one.question)
        if reply is None or foreign.intersection(_stretches(reply)):
            return False
        if _reply(one) in commonplace:
            return reply in commonplace
        return reply not in commonplace | repeated

    return sum(map(kept, was)) / len(was)


def _reply(dream: Dream) -> Tokens:
    """The reply with its frame, as `now` has it."""
    return dream.tokens[dream.reply_at :]


def _stretches(tokens: Sequence[int]) -> set[Tokens]:
    return {tuple(tokens[at : at + QUOTATION]) for at in range(len(tokens) - QUOTATION + 1)}

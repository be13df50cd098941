"""The same with other words: what a slow level knows must give way to what is told later, and is no answer to others.

Who has learned that a dog is called Tibbo answers so even after "My dog is called Brenna now.", until that is dreamt of
in its turn; and when asked for the cat. So a turn is also told with other words where its value stood, and a question
asked with another word in place of one of the turn's: the reply of one who knows nothing else is to stay. Knows tokens;
who replies is the dreamer's to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.consolidation.dreams import Dream
from engine.tokenizer import NUM_SPECIAL, Tokenizer

LONGEST_VALUE = 12


class Otherwise:
    """Puts other words in a value's place.

    Args:
        tokenizer: of the words; a word is exchanged for one of its kind: a digit for a digit, the beginning of a word
            for another one's, the middle for the middle.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        # What stands first loses its space: so another token stands before.
        before = tokenizer.encode("x")[-1]
        start = len(tokenizer.decode([before]))
        texts = [tokenizer.decode([before, at])[start:] for at in range(tokenizer.vocab_size)]
        self._kinds = [_kind(text) if at >= NUM_SPECIAL else None for at, text in enumerate(texts)]
        self._alike: dict[str, list[int]] = {}
        for at, kind in enumerate(self._kinds):
            if kind is not None:
                self._alike.setdefault(kind, []).append(at)

    def told(
        self, told: Sequence[int], dream: Dream, generator: torch.Generator
    ) -> tuple[list[int], tuple[int, ...]] | None:
        """The turn with another value than the dream's reply names, and that value; None where it names none of it."""
        value = value_of(told, dream)
        if value is None:
            return None
        other = tuple(self._another(token, generator) for token in value)
        if other == value:
            return None
        changed, at = list(told), 0
        while at <= len(changed) - len(value):
            if tuple(changed[at : at + len(value)]) == value:
                changed[at : at + len(value)] = other
                at += len(value)
            else:
                at += 1
        return changed, other

    def asked(self, told: Sequence[int], dream: Dream, generator: torch.Generator) -> tuple[int, ...] | None:
        """The question with one of the words it shares with the turn exchanged; None where it shares none."""
        said, question = set(told), list(dream.question)
        shared = [at for at, token in enumerate(question) if token in said and self._is_word(token)]
        if not shared:
            return None
        at = shared[int(torch.randint(len(shared), (1,), generator=generator))]
        question[at] = self._another(question[at], generator)
        return tuple(question)

    def _is_word(self, token: int) -> bool:
        return (self._kinds[token] or "").startswith("begins")

    def _another(self, token: int, generator: torch.Generator) -> int:
        kind = self._kinds[token]
        if kind is None:
            return token
        alike = self._alike[kind]
        return alike[int(torch.randint(len(alike), (1,), generator=generator))]


def value_of(told: Sequence[int], dream: Dream) -> tuple[int, ...] | None:
    """The longest stretch of a dream's reply that the turn says too, of words that the question does not say."""
    reply, asked = dream.tokens[dream.reply_at + 1 : -1], set(dream.question)
    said = {tuple(told[at : at + size]) for size in range(1, LONGEST_VALUE + 1) for at in range(len(told) - size + 1)}
    for size in range(min(LONGEST_VALUE, len(reply)), 0, -1):
        for at in range(len(reply) - size + 1):
            stretch = tuple(reply[at : at + size])
            if stretch in said and not asked.intersection(stretch):
                return stretch
    return None


def holds(tokens: Sequence[int], part: Sequence[int]) -> bool:
    """Whether a stretch of the tokens is `part`."""
    return any(tuple(tokens[at : at + len(part)]) == tuple(part) for at in range(len(tokens) - len(part) + 1))


def _kind(text: str) -> str | None:
    """What a token can be exchanged for; None for what stays: marks, and pieces of characters."""
    if text.strip().isdigit():
        return f"digit {text[:1] == ' '}"
    if text[:1] == " " and text[1:].isalpha():
        return f"begins {text[1:2].isupper()}"
    return "goes on" if text.isalpha() else None

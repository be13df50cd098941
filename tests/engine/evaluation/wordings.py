"""Everything that training can say to tell or to ask, as patterns: a sentence matches one or training cannot say it.

Values stay gaps ({v} matches {v}). Corpora of a data folder and invented words are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

from engine.training.dialogue import ASIDE_CHARACTERS
from engine.training.open_relations import NAMES_OF_KINDS, Family, Verb, is_held_out_word, load_open_words
from engine.training.relations import NUM_HELD_OUT_PHRASES, load_relations, load_small_talk

ENDS = "?.! "


def said_by_training(sentence: str) -> str | None:
    """The template by which training can say it, in capitals or not, with something around it or not."""
    for bare in _without_what_is_around(sentence):
        for template, pattern in _patterns():
            if pattern.fullmatch(bare.rstrip(ENDS)):
                return template
    return None


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    found: dict[str, str] = {}
    for relation in load_relations():
        if not relation.held_out:
            # Whom a relation is about is a name, of one word or two: "my aunt" is none.
            gaps = {"v": r"\{v\}", "e": r"(?!my )\S+(?: \S+)?"}
            for kind in ("tell", "ask"):
                found |= {text: _filled(text, gaps) for text in relation.phrases(kind, held_out=False)}
            found |= {text: _filled(text, gaps) for text in relation.change}
    every = list(found.items())
    for family in load_open_words().families:
        sentences = family.sentences
        texts = [text for kind in ("tell", "ask") for text in sentences[kind][:-NUM_HELD_OUT_PHRASES]]
        for gaps in _fillings(family):
            every += [(text, _filled(text, gaps)) for text in (*texts, *sentences["change"])]
    return tuple((text, re.compile(pattern, re.IGNORECASE)) for text, pattern in every)


def _fillings(family: Family) -> list[dict[str, str]]:
    """What stands in a family's gaps, whoever owns it or does it."""
    words = load_open_words()
    kin = _any(words.kin)
    if family.verbs:
        verbs = [verb for verb in family.verbs if _in_training(verb.base)] or family.verbs
        kinds = {kind for verb in verbs for kind in verb.values} or {""}
        return [
            gaps
            for kind in kinds
            for gaps in _doers(kin, kind, [verb for verb in verbs if kind in verb.values or not kind])
        ]
    nouns = family.nouns or tuple(noun for noun, _ in family.attributes)
    noun = rf"(?:{_any(words.adjectives)} )?{_any(filter(_in_training, nouns))}"
    return [{"v": r"\{v\}", "n": noun, "np": f"my (?:{kin}'s )?{noun}"}]


def _doers(kin: str, kind: str, verbs: Sequence[Verb]) -> Iterator[dict[str, str]]:
    base, third, past = (_any(getattr(verb, form) for verb in verbs) for form in ("base", "third", "past"))
    same = {"v": r"\{v\}", "verb": base, "past": past, "kind": NAMES_OF_KINDS.get(kind, kind)}
    yield {**same, "s": "I", "do": "do", "have": "have", "be": "am", "im": "I'm", "whose": "my", "verbs": base}
    them = rf"my {kin}(?: (?!my )\S+(?: \S+)?)?"
    others = {"s": them, "do": "does", "have": "has", "be": "is", "im": f"{them} is", "whose": f"{them}'s"}
    yield {**same, **others, "verbs": third}


def _in_training(word: str) -> bool:
    return not is_held_out_word(word) or word == "work"


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(re.escape(word) for word in words)})"


def _filled(template: str, gaps: dict[str, str]) -> str:
    pieces = re.split(r"\{(\w+)\}", template.rstrip(ENDS))
    filled = "".join(gaps[piece.lower()] if at % 2 else re.escape(piece) for at, piece in enumerate(pieces))
    return filled.replace(r"\ a\ ", r"\ an?\ ")


def _without_what_is_around(sentence: str) -> set[str]:
    wraps, asides = (
        load_open_words().wraps,
        [text for text, _ in load_small_talk().pairs if len(text) <= ASIDE_CHARACTERS],
    )
    before = (*wraps["before_tell"], *wraps["before_ask"], *(f"{aside} " for aside in asides))
    after = (*wraps["after_tell"], *wraps["after_ask"], *(f" {aside}" for aside in asides))
    found = _cut(sentence, before, str.startswith, str.removeprefix)
    return {bare for part in found for bare in _cut(part, after, str.endswith, str.removesuffix)}


def _cut(
    text: str, pieces: Iterable[str], stands: Callable[[str, str], bool], without: Callable[[str, str], str]
) -> set[str]:
    lower = text.lower()
    return {text} | {without(lower, piece.lower()) for piece in pieces if stands(lower, piece.lower())}

"""Strings belong to their languages, and what is said of their prefixes is what all strings of a language say."""

from __future__ import annotations

import re

import pytest
import torch

from engine.errors import InvalidRequest
from engine.evaluation.examples import Examples
from engine.evaluation.tasks.formal import LANGUAGES, FormalLanguages, Language

NAMED = {language.name: language for language in LANGUAGES}
COUNTED = {"anbn": "ab", "anbncn": "abc"}


@pytest.fixture(scope="module")
def task() -> FormalLanguages:
    """Strings of up to 12 and 24 symbols."""
    return FormalLanguages(12, num_tests=20)


def belongs(name: str, string: str) -> bool:
    """Whether a string is in a language, by another way than the generators'."""
    if name == "shuffle-2":
        return all(_balanced("".join(one for one in string if one in pair)) for pair in ("()", "[]"))
    if name in COUNTED:
        num = len(string) // len(COUNTED[name])
        return string == "".join(symbol * num for symbol in COUNTED[name])
    pattern = {"parity": "(0*10*1)*0*", "(aa)*": "(aa)*", "(abab)*": "(abab)*"}[name]
    return re.fullmatch(pattern, string) is not None


def _balanced(brackets: str) -> bool:
    while (shorter := brackets.replace("()", "").replace("[]", "")) != brackets:
        brackets = shorter
    return not brackets


def label(name: str, prefix: str) -> str:
    """What may follow a prefix, found by trying."""
    if name in ("parity", "(aa)*", "(abab)*"):
        return "in" if belongs(name, prefix) else "out"
    if name == "shuffle-2":
        return "".join(one for one in "([" if prefix.count(one) > prefix.count({"(": ")", "[": "]"}[one])) or "none"
    symbols = COUNTED[name]
    words = ["".join(symbol * count for symbol in symbols) for count in range(1, 30)]
    follow = {(word + "$")[len(prefix)] for word in words if word.startswith(prefix)}
    return " or ".join(sorted(follow)).replace("$", "end")


def strings(task: FormalLanguages, examples: Examples) -> list[tuple[str, str]]:
    """Language and string of every row."""
    symbols = {token: symbol for symbol, token in task.symbols.items()}
    found = []
    for tokens, counts in zip(examples.tokens_BT, examples.counts_BT, strict=True):
        read = [symbols[token] for token in tokens[counts].tolist()]
        assert len({name for name, _ in read}) == 1
        found.append((read[0][0], "".join(symbol for _, symbol in read)))
    return found


def check(task: FormalLanguages, examples: Examples) -> list[tuple[str, str]]:
    """Asserts that every row is a string of its language with the labels that trying finds."""
    labels = {token: name for name, token in task.labels.items()}
    found = strings(task, examples)
    for (name, string), targets, counts in zip(found, examples.target_BT, examples.counts_BT, strict=True):
        assert belongs(name, string), (name, string)
        said = [labels[token] for token in targets[counts].tolist()]
        assert said == [label(name, string[:end]) for end in range(1, len(string) + 1)], (name, string)
        assert not bool(counts[len(string) :].any())
    return found


def test_every_prefix_of_the_tests_is_labelled_as_trying_finds(task: FormalLanguages) -> None:
    conditions = []
    for condition, examples in task.tests(0):
        found = check(task, examples)
        name, number = condition.rsplit(" ", 1)
        conditions.append(condition)
        assert {one for one, _ in found} == {name}
        lengths = {len(string) for _, string in found}
        assert lengths <= (set(range(2, 13)) if number == "0" else set(range(13, 25)))
        assert len(set(found)) == len(found), "each string once"
        if not NAMED[name].single:
            assert len(found) >= 10
    assert conditions == [f"{language.name} {number}" for language in LANGUAGES for number in (0, 1)]


def test_training_holds_all_languages_in_turn_and_is_labelled_as_trying_finds(task: FormalLanguages) -> None:
    found = [one for step in range(6) for one in check(task, task.training(0, step))]
    assert {name: sum(one == name for one, _ in found) for name in NAMED} == dict.fromkeys(NAMED, 16)
    assert max(len(string) for _, string in found) == 12
    assert {name for name, _ in check(task, task.validation(0))} == set(NAMED)


def test_no_string_of_the_tests_is_in_training_where_a_length_has_more_than_one(task: FormalLanguages) -> None:
    trained = {one for step in range(300) for one in strings(task, task.training(0, step))}
    tested = {one for seed in range(3) for _, examples in task.tests(seed) for one in strings(task, examples)}
    validated = set(strings(task, task.validation(0)))
    both = {name for name, _ in trained & (tested | validated)}
    assert both <= {language.name for language in LANGUAGES if language.single}
    assert max(len(string) for _, string in trained) < min(len(one) for _, one in tested if len(one) > 12)
    assert {name for name, _ in trained} == set(NAMED)


def test_shuffles_mix_their_brackets() -> None:
    found = strings(FormalLanguages(24), dict(FormalLanguages(24).tests(0))["shuffle-2 0"])
    crossing = [string for _, string in found if re.search(r"\([^()]*\[[^\[\]]*\)", string)]
    assert len(crossing) > len(found) / 4


def test_a_seed_has_its_rows_and_another_has_others(task: FormalLanguages) -> None:
    again = FormalLanguages(12, num_tests=20)
    assert torch.equal(task.training(0, 3).tokens_BT, again.training(0, 3).tokens_BT)
    assert strings(task, task.training(0, 3)) != strings(task, task.training(1, 3))
    for (name, one), (_, same) in zip(task.tests(0), again.tests(0), strict=True):
        assert torch.equal(one.tokens_BT, same.tokens_BT), name
    first, other = (dict(task.tests(seed))["parity 1"] for seed in (0, 1))
    assert strings(task, first) != strings(task, other)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_alphabets_are_what_strings_are_made_of(language: Language, task: FormalLanguages) -> None:
    found = "".join(string for name, string in strings(task, task.validation(1)) if name == language.name)
    assert set(found) == set(language.alphabet)


def test_too_short_strings_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="8 or more"):
        FormalLanguages(4)

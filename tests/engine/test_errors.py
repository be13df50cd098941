"""The error tree: it is as its docstring draws it, and every error says what, where and when to try again."""

from __future__ import annotations

import re

import pytest

from engine import errors
from engine.errors import HopeError

# The codes of the contract (API.md, Errors), and the one of a turn that its caller stopped.
CODES = {
    *("invalid_request", "unsupported", "unauthorized", "forbidden", "not_found", "conflict", "too_large"),
    *("rate_limited", "overloaded", "store_unavailable", "draining", "deadline_exceeded", "cancelled"),
    *("internal_error", "corrupt_memory", "lease_lost", "commit_unknown"),
}
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HopeError)]


def _drawn() -> dict[str, str]:
    """Parent of every class that the docstring's tree shows."""
    parents: dict[str, str] = {}
    above = ["HopeError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^    ([│├└─ ]*── )(\w+) +\w", line):
            depth = len(found[1]) // 4
            del above[depth:]
            parents[found[2]] = above[-1]
            above.append(found[2])
    return parents


def test_the_tree_is_as_drawn() -> None:
    assert _drawn() == {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls is not HopeError and cls.__base__}


def test_every_code_of_the_contract_has_an_error_and_no_other() -> None:
    assert {cls.code for cls in CLASSES} == CODES


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_carries_what_its_caller_needs(cls: type[HopeError]) -> None:
    error = cls("it is so: do that", param="message", retry_after_s=1.5)
    assert (str(error), error.message, error.param, error.retry_after_s) == (
        "it is so: do that",
        "it is so: do that",
        "message",
        1.5,
    )
    plain = cls("it is so")
    assert (plain.param, plain.retry_after_s) == (None, None)

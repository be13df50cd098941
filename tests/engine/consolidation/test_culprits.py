"""Who spoils a candidate: the search ends, finds who is refused alone, blames no one else, and lets in the rest."""

from __future__ import annotations

import pytest

from engine.consolidation.culprits import Trial, Verdict, judge

NAMES = tuple("abcdefgh")


def refusing(*poisoned: str, together: tuple[str, ...] = ()) -> Trial:
    """A gate that refuses whoever has one of these, or all of those together."""

    async def trial(names: tuple[str, ...]) -> str | None:
        bad = [name for name in poisoned if name in names]
        if together and set(together) <= set(names):
            bad.append("all")
        return f"because of {' '.join(bad)}" if bad else None

    return trial


async def judged(trial: Trial, suspects: tuple[str, ...] = (), most_attempts: int = 8) -> Verdict:
    verdict = await judge(NAMES, suspects, trial, most_attempts)
    assert len(verdict.attempts) <= most_attempts
    assert len({frozenset(one.names) for one in verdict.attempts}) == len(verdict.attempts)
    assert not set(verdict.let_in) & set(verdict.culprits)
    return verdict


async def test_where_all_are_let_in_there_is_one_try() -> None:
    verdict = await judged(refusing())
    assert (verdict.let_in, verdict.culprits, len(verdict.attempts)) == (NAMES, {}, 1)


@pytest.mark.parametrize("bad", NAMES)
async def test_one_that_spoils_it_is_found_wherever_it_is(bad: str) -> None:
    verdict = await judged(refusing(bad))
    assert verdict.culprits == {bad: f"because of {bad}"}
    assert verdict.let_in == tuple(name for name in NAMES if name != bad)
    assert len(verdict.attempts) <= 6


async def test_two_that_spoil_it_are_found_one_after_the_other() -> None:
    verdict = await judged(refusing("b", "g"), most_attempts=12)
    assert set(verdict.culprits) == {"b", "g"}
    assert set(verdict.let_in) == set(NAMES) - {"b", "g"}


async def test_a_suspect_is_left_out_first_and_blamed_where_that_helps() -> None:
    verdict = await judged(refusing("e"), suspects=("e",))
    assert (verdict.culprits, len(verdict.attempts)) == ({"e": "because of e"}, 2)
    # Where it does not help it is not blamed.
    other = await judged(refusing("a"), suspects=("e",))
    assert set(other.culprits) == {"a"}
    assert "e" not in other.let_in


async def test_where_only_suspects_are_left_they_are_tried_like_others() -> None:
    verdict = await judge(("a", "b"), ("a", "b"), refusing("b"), 8)
    assert (verdict.let_in, set(verdict.culprits)) == (("a",), {"b"})


async def test_who_spoils_it_only_together_is_blamed_alone_by_no_one() -> None:
    verdict = await judged(refusing(together=("a", "h")))
    assert verdict.culprits == {}
    assert verdict.let_in == tuple("abcd")


@pytest.mark.parametrize("most_attempts", range(1, 9))
async def test_however_few_the_tries_what_was_let_in_stays_so(most_attempts: int) -> None:
    verdict = await judged(refusing("h"), most_attempts=most_attempts)
    assert set(verdict.culprits) <= {"h"}
    assert bool(verdict.let_in) == (most_attempts > 1)


async def test_where_nothing_is_let_in_nobody_is_blamed() -> None:
    verdict = await judged(refusing(*NAMES))
    assert (verdict.let_in, verdict.culprits) == ((), {})

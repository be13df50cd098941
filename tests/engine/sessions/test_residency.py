"""Memories kept in the process: within the budget, least recently used out first, never a stale one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.sessions.residency import Residency
from tests.engine.sessions.samples import make_session

A, B, C = (replace(make_session(name), version=1) for name in "abc")


def test_the_least_recently_used_makes_room() -> None:
    kept: Residency[str] = Residency(budget_bytes=20)
    kept.put("t", A, "memory of a", 10)
    kept.put("t", B, "memory of b", 10)
    assert kept.get("t", A) == "memory of a"
    kept.put("t", C, "memory of c", 10)
    assert kept.get("t", B) is None
    assert kept.get("t", A) == "memory of a"
    assert (len(kept), kept.size_bytes) == (2, 20)


def test_law_10_another_version_is_not_the_head() -> None:
    kept: Residency[str] = Residency(budget_bytes=20)
    kept.put("t", A, "old", 10)
    assert kept.get("t", replace(A, version=2)) is None
    assert (len(kept), kept.size_bytes) == (0, 0)


def test_law_10_a_number_that_a_store_gave_again_after_losing_writes_is_not_the_same_version() -> None:
    kept: Residency[str] = Residency(budget_bytes=20)
    kept.put("t", A, "lost with the server that had it", 10)
    assert kept.get("t", replace(A, updated_at="2030-01-01T00:00:00Z")) is None


def test_law_8_a_session_made_anew_under_its_id_does_not_get_the_old_memory() -> None:
    kept: Residency[str] = Residency(budget_bytes=20)
    kept.put("t", A, "of the deleted one", 10)
    assert kept.get("t", replace(A, created_at="2030-01-01T00:00:00Z")) is None


def test_law_8_another_tenants_session_of_the_same_id_is_another() -> None:
    kept: Residency[str] = Residency(budget_bytes=20)
    kept.put("t", A, "mine", 10)
    assert kept.get("u", A) is None
    assert kept.get("t", A) == "mine"


def test_one_that_exceeds_the_budget_is_not_kept_and_puts_nobody_out() -> None:
    kept: Residency[str] = Residency(budget_bytes=20)
    kept.put("t", A, "small", 10)
    kept.put("t", B, "large", 21)
    assert kept.get("t", B) is None
    assert kept.get("t", A) == "small"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 12), st.booleans()), max_size=60))
def test_the_budget_holds_whatever_happens(steps: list[tuple[str, int, bool]]) -> None:
    kept: Residency[int] = Residency(budget_bytes=20)
    for name, size_bytes, drop in steps:
        if drop:
            kept.drop("t", name)
        else:
            kept.put("t", make_session(name), size_bytes, size_bytes)
        assert 0 <= kept.size_bytes <= 20
    for name in "abcdef":
        kept.drop("t", name)
    assert (len(kept), kept.size_bytes) == (0, 0)

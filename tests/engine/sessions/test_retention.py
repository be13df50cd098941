"""Which versions are kept: the last ones, and the last of each of some days before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sessions.records import Version
from engine.sessions.retention import Retention

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)


def version(number: int, made: datetime) -> Version:
    return Version(number, "", None, _iso(made), 1, "", 1, "", (), 0, number, number, 0)


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def numbers(versions: list[Version]) -> list[int]:
    return [version.version for version in versions]


@pytest.mark.parametrize(
    ("num_versions", "num_days", "forgotten"),
    [(2, 0, [1, 2, 3, 4, 5, 6]), (2, 7, [1, 2, 4, 5]), (5, 7, [1, 2]), (1, 2, [1, 2, 3, 4, 5, 7]), (9, 0, [])],
)
def test_the_last_ones_and_the_last_of_each_day(num_versions: int, num_days: int, forgotten: list[int]) -> None:
    days_ago = {1: 9, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 0, 8: 0}
    versions = [version(number, NOW - timedelta(days=days, minutes=-number)) for number, days in days_ago.items()]
    assert numbers(Retention(num_versions, num_days).forgotten(versions, _iso(NOW))) == forgotten


@given(st.lists(st.integers(0, 40 * 24), max_size=40), st.integers(1, 10), st.integers(0, 10))
def test_it_is_bounded_and_keeps_what_it_says(hours_ago: list[int], num_versions: int, num_days: int) -> None:
    made = sorted(NOW - timedelta(hours=hours) for hours in hours_ago)
    versions = [version(number + 1, time) for number, time in enumerate(made)]
    forgotten = set(numbers(Retention(num_versions, num_days).forgotten(versions, _iso(NOW))))
    kept = [one for one in versions if one.version not in forgotten]
    assert len(kept) <= num_versions + num_days
    assert kept[-num_versions:] == versions[-num_versions:]
    for one in kept[:-num_versions]:
        day = one.created_at[:10]
        assert NOW.date() - datetime.fromisoformat(one.created_at).date() < timedelta(days=num_days)
        assert one == [other for other in versions if other.created_at[:10] == day][-1]

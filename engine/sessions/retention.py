"""Which versions of a memory are kept: the last ones, and of earlier days the last one each. Pure: no store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from engine.sessions.records import Version


@dataclass(frozen=True)
class Retention:
    """How much of a session's past stays within reach.

    Attributes:
        num_versions: the newest so many are kept, whatever their age.
        num_days: of so many days (UTC), today among them, the newest version each is kept too.
    """

    num_versions: int = 8
    num_days: int = 7

    def forgotten(self, versions: Iterable[Version], now: str) -> list[Version]:
        """Those of the versions that are not kept, oldest first.

        Args:
            versions: all there are, the newest among them.
            now: the time, as the wire writes it.
        """
        newest_first = sorted(versions, key=lambda version: version.version, reverse=True)
        kept = {version.version for version in newest_first[: max(1, self.num_versions)]}
        oldest_day, days = _day(now) - timedelta(days=self.num_days), set[date]()
        for version in newest_first:
            day = _day(version.created_at)
            if day not in days and day > oldest_day:
                kept.add(version.version)
            days.add(day)
        return [version for version in reversed(newest_first) if version.version not in kept]


def _day(time: str) -> date:
    return datetime.fromisoformat(time).date()

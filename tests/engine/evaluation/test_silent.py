"""The silent observer is a whole observer, and counts memory updates."""

from __future__ import annotations

import inspect

import pytest

from engine.evaluation.silent import SilentObserver
from engine.observer import Observer

REPORTS = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")]


@pytest.mark.parametrize("name", REPORTS)
def test_it_hears_every_report_of_an_observer(name: str) -> None:
    wanted, found = inspect.signature(getattr(Observer, name)), inspect.signature(getattr(SilentObserver, name))
    assert list(wanted.parameters) == list(found.parameters)


def test_it_counts_updates_by_level_and_outcome() -> None:
    observer = SilentObserver()
    for level, outcome in (("cms.fast", "applied"), ("cms.fast", "applied"), ("titans", "skipped")):
        observer.memory_update(level, outcome, 0.5)
    observer.tokens("read", 3)
    assert dict(observer.updates) == {("cms.fast", "applied"): 2, ("titans", "skipped"): 1}

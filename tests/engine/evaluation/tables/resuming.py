"""What the tables' tests share: a table measured by its command with few steps, and again without training anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.evaluation import study
from engine.evaluation.study import Results, Run
from engine.evaluation.table_command import run_table


def measured(name: str, folder: Path, *flags: str) -> list[Run]:
    """Runs a table by its command, two training steps a run; returns the runs kept."""
    common = ["--models", "hope,gated-deltanet", "--seeds", "1", "--steps", "2", "--results", str(folder)]
    assert run_table(name, [*common, "--rates", "0.001", *flags]) == 0
    return Results(folder / f"{name}.jsonl").runs


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any training from here on fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this run is there already")

    monkeypatch.setattr(study, "fit", refuse)


def check_runs(runs: list[Run], conditions: list[str]) -> None:
    """Asserts a run of both contestants, every condition a share, in order."""
    assert [(run.model, run.seed) for run in runs] == [("hope", 0), ("gated-deltanet", 0)]
    for run in runs:
        assert list(run.values) == conditions
        assert all(0.0 <= value <= 1.0 for value in run.values.values())
        assert run.notes["validation_loss"] > 0.0
    sizes = [run.notes["parameters"] for run in runs]
    assert max(sizes) <= 1.02 * min(sizes), "contestants are of one size"

"""The optimizers' table: the best rate of each over all seeds, resumed run by run; one that diverged is no figure."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.evaluation.characters import Case, CharacterPlan
from engine.evaluation.report import markdown_table
from engine.evaluation.study import Results
from engine.evaluation.tables.optimizers import measure, remarks, study

TEXT = "the cat sat on the mat. " * 60
PLAN = CharacterPlan(num_steps=12, num_rows=16, num_validation_rows=50, context=4)
CASES = {"adamw": Case("adamw"), "wild": Case("sgd", {"momentum": 1e30})}


def test_the_best_rate_counts_and_no_run_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "optimizers.jsonl"
    runs = study(TEXT, PLAN, CASES, (0.003, 0.03), 2, Results(path))
    adam, wild = runs[:2], runs[2:]
    assert {run.settings["rate"] for run in adam} == {0.03}
    assert all(0.0 < run.values["loss"] < 2.9 for run in adam), "below the logarithm of the alphabet's size"
    assert all(math.isinf(run.values["loss"]) for run in wild)
    assert markdown_table(runs, percent=False).splitlines()[-1].endswith("| – |")
    assert "adamw 0.03" in remarks(runs)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    path.write_text("".join(lines[:7]) + lines[7][:20])
    results = Results(path)
    assert len(results.runs) == 7
    assert study(TEXT, PLAN, CASES, (0.003, 0.03), 2, results) == runs
    assert len(results.runs) == 8
    study(TEXT, CharacterPlan(13, 16, 50, 4), {"adamw": Case("adamw")}, (0.003,), 1, results)
    assert len(results.runs) == 9, "another plan is another run"


def test_a_text_is_needed_and_not_too_short(tmp_path: Path) -> None:
    given = argparse.Namespace(text=None, data=None, steps=None, optimizer=[], rates=None, seeds=1)
    with pytest.raises(InvalidRequest, match="--text FILE"):
        measure(given, Results(tmp_path / "x.jsonl"))
    (tmp_path / "text").write_text("hello")
    given.text = tmp_path / "text"
    with pytest.raises(InvalidRequest, match="too short"):
        measure(given, Results(tmp_path / "x.jsonl"))

"""A table resumes run by run, tries every rate alike, and counts every contestant's best; and fitting does fit."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from engine.evaluation import study as study_module
from engine.evaluation.contestants import Shape, build
from engine.evaluation.fitting import FitPlan, accuracies, best_rate, fit, schedule
from engine.evaluation.study import Results, Run, Study, beginning, by_model, run_study
from tests.engine.evaluation.copying import Copying

SHAPE = Shape(Copying.vocab_size, width=32, num_layers=1, num_heads=2, chunk=8)
QUICK = FitPlan(steps=2, rates=(1e-3, 1e-2))


def hope() -> nn.Module:
    return build("hope", SHAPE)


def transformer() -> nn.Module:
    return build("transformer", SHAPE)


def study(num_seeds: int = 2) -> Study:
    return Study("copying", Copying(), (("hope", hope), ("transformer", transformer)), QUICK, num_seeds)


def test_a_model_learns_the_task_and_is_tested_by_condition() -> None:
    fitted = fit(hope, Copying(), FitPlan(steps=120, rates=(1e-2,)), 1e-2, seed=0)
    assert fitted.validation.accuracy > 0.9
    values = dict(accuracies(fitted.model, Copying(), 0))
    assert list(values) == ["short", "long"]
    assert values["short"] > 0.9
    assert fitted.num_tokens == 120 * 8 * 11


def test_the_same_seed_fits_the_same_model() -> None:
    losses = [fit(hope, Copying(), QUICK, 1e-2, seed).validation.loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_rate_rises_then_falls_to_nothing() -> None:
    plan = FitPlan(steps=100, warmup=0.1)
    rates = [schedule(step, plan) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == 1.0
    assert 0 < rates[99] < 0.02


@pytest.mark.parametrize(
    ("tried", "best"),
    [([(0.1, 2.0), (0.2, 1.0)], 0.2), ([(0.1, math.nan), (0.2, 9.0)], 0.2), ([(0.1, math.inf), (0.2, 3.0)], 0.2)],
)
def test_the_best_rate_has_the_lowest_loss_that_is_a_number(tried: list[tuple[float, float]], best: float) -> None:
    assert best_rate(tried) == best


def test_every_contestant_tries_every_rate_and_runs_every_seed(tmp_path: Path) -> None:
    results = Results(tmp_path / "copying.jsonl")
    counted = run_study(study(), results, show_progress=False)
    assert len(results.runs) == 2 * (2 + 1)
    for name, runs in by_model(counted):
        assert [run.seed for run in runs] == [0, 1], name
        assert len({run.settings["rate"] for run in runs}) == 1
        tried = [run for run in results.runs if run.model == name and run.seed == 0]
        assert runs[0].notes["validation_loss"] == min(run.notes["validation_loss"] for run in tried)
        assert list(runs[0].values) == ["short", "long"]
        assert runs[0].notes["parameters"] > 1000


def test_a_model_that_is_built_otherwise_is_run_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "copying.jsonl")
    for changes, num_runs in (({}, 3), ({}, 3), ({"write_rule": "dgd"}, 6), ({"read": "boundary"}, 9)):
        contestants = [("hope", partial(build, "hope", SHAPE, **changes))]
        run_study(Study("copying", Copying(), contestants, QUICK, 2), results, show_progress=False)
        assert len(results.runs) == num_runs


def test_what_a_model_begins_as_is_the_same_every_time_and_another_with_another_seed() -> None:
    digests = [beginning(hope, seed) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "copying.jsonl"
    first = run_study(study(), Results(path), show_progress=False)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20])  # killed while it wrote the fifth
    fits = []

    def counted(*given: object) -> object:
        fits.append(given)
        return fit(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(study_module, "fit", counted)
    again = run_study(study(), Results(path), show_progress=False)
    assert len(fits) == 2
    assert [run.values for run in again] == [run.values for run in first]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    run_study(study(), Results(path), show_progress=False)
    assert len(fits) == 2


def test_other_settings_are_other_runs(tmp_path: Path) -> None:
    results = Results(tmp_path / "x.jsonl")
    results.add(Run("t", "hope", 0, {"steps": 2}, {"a": 1.0}))
    assert results.find("hope", 0, {"steps": 2}) is not None
    assert results.find("hope", 0, {"steps": 3}) is None
    assert results.find("hope", 1, {"steps": 2}) is None
    assert results.find("titans", 0, {"steps": 2}) is None

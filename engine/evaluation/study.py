"""A table: every contestant on one task, learning rates tried alike, several seeds; run by run, so that it resumes.

A finished run is one line of a JSONL file; what is there already is not run again. Knows no rendering.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from engine.evaluation.contestants import num_parameters
from engine.evaluation.examples import Task
from engine.evaluation.fitting import FitPlan, Measure, accuracies, best_rate, fit


@dataclass(frozen=True)
class Run:
    """One line of a table's results.

    Attributes:
        table, model: whose line it is.
        seed: of weights and data.
        settings: what else tells this run from others: learning rate, steps, task, what the model begins as.
        values: the measured figure of every condition, in order.
        notes: what was measured beside: parameters, seconds, validation loss.
    """

    table: str
    model: str
    seed: int
    settings: dict[str, float | int | str]
    values: dict[str, float]
    notes: dict[str, float] = field(default_factory=dict)


def to_json(run: Run) -> dict[str, Any]:
    """A run as JSON has it: a figure that is no number (a run that diverged) is null."""
    values = {name: value if math.isfinite(value) else None for name, value in run.values.items()}
    notes = {name: value if math.isfinite(value) else None for name, value in run.notes.items()}
    return {**asdict(run), "values": values, "notes": notes}


def from_json(line: dict[str, Any]) -> Run:
    """The run that `to_json` wrote."""
    figures = {part: {n: math.inf if v is None else v for n, v in line[part].items()} for part in ("values", "notes")}
    return Run(line["table"], line["model"], line["seed"], line["settings"], **figures)


class Results:
    """The runs of one table on disk, one line each; a line cut short by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        self.runs = [from_json(json.loads(line)) for line in lines if line.endswith("\n")]

    def find(self, model: str, seed: int, settings: dict[str, float | int | str]) -> Run | None:
        """The finished run of these settings."""
        wanted = (model, seed, settings)
        return next((run for run in self.runs if (run.model, run.seed, run.settings) == wanted), None)

    def add(self, run: Run) -> Run:
        """Keeps a finished run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.runs.append(run)
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(to_json(one)) + "\n" for one in self.runs))
        os.replace(partial, self.path)
        return run


@dataclass(frozen=True)
class Study:
    """What a table compares.

    Attributes:
        table: its name.
        task: what is learned and tested.
        makers: contestants: name and how to build one.
        plan: how each is trained.
        num_seeds: seeds 0 to num_seeds - 1.
        measure: what is measured of a trained model.
    """

    table: str
    task: Task
    makers: Sequence[tuple[str, Callable[[], nn.Module]]]
    plan: FitPlan
    num_seeds: int = 3
    measure: Measure = accuracies


def run_study(study: Study, results: Results, *, show_progress: bool = True) -> list[Run]:
    """Runs what is missing of a table; returns the runs that count: every contestant's best rate, all seeds."""
    total = len(study.makers) * (len(study.plan.rates) - 1 + study.num_seeds)
    bar = tqdm(total=total, unit="run", desc=study.table, disable=not show_progress)
    counted = []
    for name, make in study.makers:
        tried = [_run(study, results, name, make, rate, 0, bar) for rate in study.plan.rates]
        rate = best_rate([(float(run.settings["rate"]), run.notes["validation_loss"]) for run in tried])
        best = next(run for run in tried if run.settings["rate"] == rate)
        counted += [best, *(_run(study, results, name, make, rate, seed, bar) for seed in range(1, study.num_seeds))]
    bar.close()
    return counted


def _run(
    study: Study,
    results: Results,
    name: str,
    make: Callable[[], nn.Module],
    rate: float,
    seed: int,
    bar: tqdm[Any],
) -> Run:
    settings: dict[str, float | int | str] = {"task": study.task.name, "steps": study.plan.steps, "rate": rate}
    settings["begins"] = beginning(make, seed)
    run = results.find(name, seed, settings)
    if run is None:
        bar.set_postfix_str(f"{name}, rate {rate:g}, seed {seed}")
        fitted = fit(make, study.task, study.plan, rate, seed)
        values = dict(study.measure(fitted.model, study.task, seed))
        notes = {
            "parameters": float(num_parameters(fitted.model)),
            "seconds": round(fitted.seconds, 1),
            "tokens": float(fitted.num_tokens),
            "validation_loss": fitted.validation.loss,
            "validation_accuracy": fitted.validation.accuracy,
        }
        run = results.add(Run(study.table, name, seed, settings, values, notes))
    bar.update()
    return run


def beginning(make: Callable[[], nn.Module], seed: int) -> str:
    """8 hex digits of a contestant's shape and first weights: a run of a model that is built otherwise is another."""
    torch.manual_seed(seed)
    model = make()
    digest = hashlib.sha256(repr(getattr(model, "config", "")).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def by_model(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run]]]:
    """Runs of each contestant, in the order in which they appear."""
    for name in dict.fromkeys(run.model for run in runs):
        yield name, [run for run in runs if run.model == name]

"""The table of intents: every contestant in every way, resumed run by run, from both forms of data."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from engine.errors import InvalidRequest
from engine.evaluation.fitting import Fitted, fit
from engine.evaluation.report import markdown_table
from engine.evaluation.study import Results
from engine.evaluation.tables import intents
from tests.engine.evaluation.tasks.samples import utterances, write_clinc

SMALL = "--tasks 2 --classes 2 --shots 2 --queries 3 --tested 4 --row-tokens 48 --width 32 --layers 1 --task-steps 3"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """The tiny checkpoint's tokenizer in place of the shipped one."""
    monkeypatch.setattr(intents, "bundled_checkpoint", lambda: checkpoint)


def given(flags: str, data: Path | None, models: str = "hope,transformer,samba") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    intents.arguments(parser)
    found = parser.parse_args(flags.split())
    common = {"models": models.split(","), "seeds": 2, "steps": 2, "rates": None, "data": data}
    return argparse.Namespace(**vars(found), **common)


def test_every_way_has_its_row_and_no_run_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = write_clinc(tmp_path / "data"), tmp_path / "intents.jsonl"
    runs = intents.measure(given(SMALL, data), Results(path))
    names = list(dict.fromkeys(run.model for run in runs))
    assert names == [
        "(nearest centroid)",
        *("hope, in memory", "hope, in memory, levels", "hope, fine-tuned", "hope, elastic", "hope, joint"),
        *("transformer, in memory", "transformer, fine-tuned", "transformer, elastic", "transformer, joint"),
        "samba, in memory",
    ]
    assert len(runs) == 2 * len(names)
    for run in runs:
        assert list(run.values) == ["after 1", "after 2", "forgetting"]
        assert all(-1.0 <= value <= 1.0 for value in run.values.values())
    assert len(markdown_table(runs, percent=True).splitlines()) == 2 + len(names)
    # A run that was lost is run again, and no model is trained for what is kept.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    trained = []

    def recorded(make: Callable[[], nn.Module], *how: Any) -> Fitted:
        trained.append(make)
        return fit(make, *how)

    monkeypatch.setattr(intents, "fit", recorded)
    again = intents.measure(given(SMALL, data), Results(path))
    assert len(trained) == 1
    assert [(run.model, run.values) for run in again] == [(run.model, run.values) for run in runs]


def test_the_rate_of_the_lowest_validation_loss_counts(tmp_path: Path) -> None:
    results = Results(tmp_path / "intents.jsonl")
    asked = given(SMALL, write_clinc(tmp_path / "data"), "samba")
    asked.rates, asked.seeds, asked.steps = (1e-9, 1e-2), 1, 12
    runs = intents.measure(asked, results)
    assert len(results.runs) == 3
    assert runs[-1].settings["rate"] == 1e-2
    losses = {run.settings["rate"]: run.notes["validation_loss"] for run in results.runs[1:]}
    assert losses[1e-2] < losses[1e-9]


def test_a_csv_stands_in_for_clinc(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *utterances(12, 6)])
    flags = f"{SMALL} --csv {tmp_path / 'train.csv'} {tmp_path / 'test.csv'}"
    runs = intents.measure(given(flags, None, "samba"), Results(tmp_path / "intents.jsonl"))
    assert {run.settings["classes"] for run in runs} == {"8+4"}
    assert runs[0].values["after 2"] > 0.9, "classes of one word each are no riddle to the centroid"


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    data, results = write_clinc(tmp_path / "data"), Results(tmp_path / "intents.jsonl")
    with pytest.raises(InvalidRequest, match="--data FOLDER"):
        intents.measure(given(SMALL, None), results)
    with pytest.raises(InvalidRequest, match="leave none"):
        intents.measure(given(SMALL.replace("--tasks 2", "--tasks 6"), data), results)
    with pytest.raises(InvalidRequest, match="from 1 up"):
        intents.measure(given(SMALL.replace("--shots 2", "--shots 0"), data), results)
    with pytest.raises(InvalidRequest, match="'llama' is none of"):
        intents.measure(given(SMALL, data, "llama"), results)

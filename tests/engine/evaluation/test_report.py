"""The results page: means and spreads as they are, every table with its command and plot, dashes where nothing is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import pytest

from engine.evaluation import report, table_command
from engine.evaluation.report import markdown_table, render
from engine.evaluation.study import Results, Run, from_json, to_json
from engine.evaluation.table_command import run_render, run_table

RUNS = [
    Run("t", "hope", 0, {}, {"short": 0.5, "long": 0.25}, {"parameters": 1234.0}),
    Run("t", "hope", 1, {}, {"short": 0.7, "long": 0.25}, {"parameters": 1234.0}),
    Run("t", "titans", 0, {}, {"short": 1.0}),
]


def table(name: str = "copying", **more: object) -> ModuleType:
    module = ModuleType(name)
    module.TITLE = "Copying"  # type: ignore[attr-defined]
    module.arguments = lambda parser: parser.add_argument("--pairs", type=int, default=1)  # type: ignore[attr-defined]
    for key, value in more.items():
        setattr(module, key, value)
    return module


def test_a_row_a_contestant_a_column_a_condition() -> None:
    lines = markdown_table(RUNS, percent=True).splitlines()
    assert lines[0] == "| model | parameters | seeds | short | long |"
    assert lines[2] == "| hope | 1,234 | 2 | 60.0% ± 14.1 | 25.0% ± 0.0 |"
    assert lines[3] == "| titans | – | 1 | 100.0% | – |"


def test_other_figures_are_no_percents() -> None:
    runs = [
        Run("t", "hope", 0, {}, {"perplexity": 12.345, "bytes": 12345.6}),
        Run("t", "x", 0, {}, {"bytes": math.inf}),
    ]
    lines = markdown_table(runs, percent=False).splitlines()
    assert lines[2] == "| hope | – | 1 | 12.35 | 12,346 |"
    assert lines[3] == "| x | – | 1 | – | – |"


def test_a_table_of_many_conditions_is_turned() -> None:
    many = {f"c{number}": number / 100 for number in range(20)}
    lines = markdown_table([*RUNS[2:], Run("t", "hope", 0, {}, many)], percent=True).splitlines()
    assert lines[:2] == ["| model | titans | hope |", "|---|---:|---:|"]
    assert lines[4:6] == ["| short | 100.0% | – |", "| c0 | – | 0.0% |"]
    assert lines[-1] == "| c19 | – | 19.0% |"


def test_the_page_has_every_table_with_its_command_text_and_plot(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "results" / "copying.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"table": "t", "command": "hope eval t --seeds 2", "runs": [to_json(r) for r in RUNS]}))
    page = tmp_path / "docs" / "RESULTS.md"
    module = table(TEXT="What it is.", remarks=lambda runs: f"{len(runs)} runs.")
    assert render([(module, path)], page) == 1
    text = page.read_text()
    for part in ("## Copying", "What it is.", "`hope eval t --seeds 2`", "| hope | 1,234 |", "3 runs."):
        assert part in text
    assert "![Copying](results/copying.svg)" in text
    assert (tmp_path / "docs" / "results" / "copying.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("digests", "warned"), [(["of now"], False), (["earlier"], True), (["earlier", "of now"], False)]
)
def test_a_table_of_an_earlier_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: list[str], warned: bool
) -> None:
    monkeypatch.setattr(report, "checkpoint_digest", lambda folder: "of now")
    runs = [Run("t", "hope", 0, {"checkpoint": digest}, {"short": 0.5}) for digest in digests]
    path = tmp_path / "copying.json"
    path.write_text(json.dumps({"table": "t", "command": "hope eval t", "runs": [to_json(run) for run in runs]}))
    render([(table(), path)], tmp_path / "RESULTS.md")
    assert ("an earlier checkpoint (earlier)" in (tmp_path / "RESULTS.md").read_text()) == warned


def test_a_table_is_measured_kept_printed_and_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(given: object, results: Results) -> list[Run]:
        assert given.pairs == 3  # type: ignore[attr-defined]
        return [results.add(run) for run in RUNS]

    monkeypatch.setattr(table_command, "table_module", lambda name: table(name, measure=measure))
    monkeypatch.setattr(table_command, "TABLES", ("mqar", "babi"))
    folder = str(tmp_path / "results")
    assert run_table("mqar", ["--pairs", "3", "--results", folder]) == 0
    assert "| titans |" in capsys.readouterr().out
    summary = json.loads((tmp_path / "results" / "mqar.json").read_text())
    assert summary["command"] == f"hope eval mqar --pairs 3 --results {folder}"
    assert [from_json(run) for run in summary["runs"]] == RUNS
    assert len(Results(tmp_path / "results" / "mqar.jsonl").runs) == 3
    assert run_render(["--results", folder, "--out", str(tmp_path / "RESULTS.md")]) == 0
    assert "1 tables" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--models", "hope,hopp"], "'hopp' is none of hope"),
        (["--seeds", "0"], "'0' is no whole number"),
        (["--steps", "-3"], "'-3' is no whole number"),
        (["--threads", "two"], "'two' is no whole number"),
    ],
)
def test_a_flag_that_cannot_be_is_said_before_anything_is_trained(
    flags: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_table("mqar", [*flags, "--results", str(tmp_path)])
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""`hope eval`: its flags become a plan, its runs a summary, and the summary JSON and a table."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from engine.evaluation import command
from engine.evaluation.command import run_evaluation, summarise
from engine.evaluation.recall import GAPS, Asked, RecallPlan
from engine.evaluation.telling import tellings
from engine.training.talk import Talk
from tests.engine.evaluation.samples import Ears

SMALL = ("--seeds", "1", "--sessions", "1", "--facts", "1")


def asked(gap: int, right: bool) -> Asked:
    return Asked(gap, "My dog is called Rex.", "What is my dog called?", "Rex", "Rex." if right else "Hm.")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RecallPlan, int, Path | None]]:
    """What would be measured; every run recalls at gap 1 and nowhere else."""
    plans: list[tuple[RecallPlan, int, Path | None]] = []

    async def measure(plan: RecallPlan, seed: int, checkpoint: Path | None = None) -> list[Asked]:
        plans.append((plan, seed, checkpoint))
        return [asked(gap, gap == 1) for gap in plan.gaps]

    monkeypatch.setattr(command, "measure_recall", measure)
    return plans


def test_a_summary_is_recall_by_gap_over_runs() -> None:
    plan = RecallPlan(num_sessions=1, facts_per_session=4, gaps=(1, 20), relations="open", rates=(("cms.fast", 0.0),))
    half = [asked(1, True), asked(1, True), asked(1, False), asked(1, False)]
    none, all_right = [asked(20, False)] * 4, [asked(20, True)] * 4
    assert summarise(plan, [half + none, half + all_right]) == {
        "table": "recall",
        "relations": "open",
        "phrases": "training",
        "facts_a_run": 4,
        "rates": {"cms.fast": 0.0},
        "rows": [
            {"turns": 1, "recall": 0.5, "spread": 0.0, "runs": [0.5, 0.5]},
            {"turns": 20, "recall": 0.5, "spread": pytest.approx(0.5**0.5), "runs": [0.0, 1.0]},
        ],
    }


def test_one_run_has_no_spread() -> None:
    rows = summarise(RecallPlan(gaps=(1,)), [[asked(1, True), asked(1, False)]])["rows"]
    assert rows == [{"turns": 1, "recall": 0.5, "spread": 0.0, "runs": [0.5]}]


@pytest.mark.parametrize(
    ("relations", "held_out_phrases", "phrases"),
    [
        ("training", False, "training"),
        ("training", True, "held-out"),
        ("everyday", False, "held-out"),
        ("paraphrases", False, "held-out"),
    ],
)
def test_a_summary_names_the_wordings(relations: str, held_out_phrases: bool, phrases: str) -> None:
    plan = RecallPlan(gaps=(1,), relations=relations, held_out_phrases=held_out_phrases)
    summary = summarise(plan, [[asked(1, True)]])
    assert (summary["relations"], summary["phrases"]) == (relations, phrases)


def test_end_to_end_a_table_and_json(
    checkpoint: Path, ears: Ears, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recall.json"
    assert (
        run_evaluation(["recall", "--checkpoint", str(checkpoint), *SMALL, "--off", "cms.fast", "--out", str(out)]) == 0
    )
    summary = json.loads(out.read_text())
    assert [row["turns"] for row in summary["rows"]] == list(GAPS)
    assert all(row["recall"] == 0.0 and len(row["runs"]) == 1 for row in summary["rows"]), "noise recalls nothing"
    assert summary["rates"] == {"cms.fast": 0.0}
    assert summary["facts_a_run"] == 1
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["other", "turns", "recall", "spread"]
    assert [line.split()[:2] for line in table[1:]] == [[str(gap), "0.0%"] for gap in GAPS]


def test_a_model_that_says_everything_recalls_everything(checkpoint: Path, ears: Ears, tmp_path: Path) -> None:
    told = tellings(random.Random("0:0"), 1, "training", held_out_phrases=False, talk=Talk(None))
    ears.reply = f"Was it {told[0].value}?"
    out = tmp_path / "recall.json"
    assert run_evaluation(["--checkpoint", str(checkpoint), *SMALL, "--out", str(out)]) == 0
    assert [row["recall"] for row in json.loads(out.read_text())["rows"]] == [1.0, 1.0, 1.0]


def test_flags_become_the_plan(planned: list[tuple[RecallPlan, int, Path | None]]) -> None:
    flags = ["--seeds", "2", "--sessions", "4", "--facts", "3", "--relations", "open", "--phrases", "held-out"]
    assert run_evaluation([*flags, "--off", "cms.fast", "--rate", "cms.medium=0.25"]) == 0
    plan = RecallPlan(4, 3, GAPS, "open", True, (("cms.fast", 0.0), ("cms.medium", 0.25)))
    assert planned == [(plan, 0, None), (plan, 1, None)]


def test_without_flags_it_is_the_table_of_the_card(planned: list[tuple[RecallPlan, int, Path | None]]) -> None:
    assert run_evaluation([]) == 0
    assert planned == [(RecallPlan(10, 5, (1, 5, 20), "training", False, ()), seed, None) for seed in range(3)]


@pytest.mark.parametrize("show", [True, False])
def test_questions_are_shown_where_asked(
    show: bool, planned: list[tuple[RecallPlan, int, Path | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_evaluation(["--seeds", "1", *(["--show"] if show else [])]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if "->" in line]
    assert len(shown) == (len(GAPS) if show else 0)
    if show:
        assert shown[0].split() == "+ 1 My dog is called Rex. | What is my dog called? -> Rex.".split()
        assert shown[1].startswith("-")


@pytest.mark.parametrize(
    "flags",
    [
        ("--rate", "cms.fast"),
        ("--rate", "cms.fast=quick"),
        ("--seeds", "0"),
        ("--sessions", "0"),
        ("--facts", "0"),
        ("--relations", "other"),
        ("--phrases", "other"),
        ("perplexity",),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    flags: tuple[str, ...], planned: list[tuple[RecallPlan, int, Path | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_evaluation(flags)
    assert ended.value.code == 2
    assert flags[-1] in capsys.readouterr().err.splitlines()[-1]
    assert planned == []


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_evaluation(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    examples = [line.split("  ")[1] for line in out.splitlines() if line.startswith("  hope eval recall")]
    assert len(examples) >= 5
    for flag in ("--phrases held-out", "--relations open", "--relations everyday", "--off cms.fast"):
        assert any(flag in example for example in examples)

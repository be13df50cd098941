"""The table of ablations: every row is Hope with that one part changed, at equal parameters; and it resumes."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import ModelConfig
from engine.errors import InvalidRequest
from engine.evaluation.contestants import Shape, num_parameters
from engine.evaluation.examples import Examples
from engine.evaluation.study import Results, Run
from engine.evaluation.table_command import run_table
from engine.evaluation.tables import ablation
from engine.evaluation.tables.ablation import CHANGES, HOPE, NO_LEVELS, maker, remarks
from engine.evaluation.tasks.dialogues import TEXT, VALUES, DialogueTask
from engine.model.hope import Hope
from tests.engine.evaluation.tables.resuming import forbid_training

SHAPE = Shape(512)


def _config(row: str) -> ModelConfig:
    model = maker(row, SHAPE)()
    assert isinstance(model, Hope)
    return model.config


@pytest.mark.parametrize("row", CHANGES)
def test_every_row_is_of_one_size_and_reads(row: str) -> None:
    whole, model = maker(HOPE, SHAPE)(), maker(row, SHAPE)()
    assert isinstance(model, Hope)
    assert num_parameters(model) == pytest.approx(num_parameters(whole), rel=0.01)
    x_BTD, _ = model.hidden(torch.randint(8, 512, (2, 40)), model.initial_memory(2, levels=False))
    assert torch.isfinite(model.logits(x_BTD)).all()


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        ("w/o DGD", "write_rule", "gradient"),
        ("with momentum", "momentum", True),
        ("w/o decay", "retention", False),
        ("w/o adaptive k", "adaptive", ("value", "query", "eta", "alpha")),
        ("w/o adaptive v", "adaptive", ("key", "query", "eta", "alpha")),
        ("w/o adaptive q", "adaptive", ("key", "value", "eta", "alpha")),
        ("DGD of one layer", "write_rule", "dgd"),
        ("steps up to 1", "largest_step", 1.0),
        ("dot objective", "objective", "dot"),
        ("boundary read", "read", "boundary"),
        ("decay towards zero", "decay_towards", "zero"),
        ("independent chain", "chain", "independent"),
    ],
)
def test_a_row_changes_one_part_alone(row: str, field: str, value: object) -> None:
    whole, changed = _config(HOPE), _config(row)
    differing = {name for name in vars(whole) if getattr(whole, name) != getattr(changed, name)}
    # The slowest level's width makes up for parameters.
    assert differing - {"levels"} == {field}
    assert getattr(changed, field) == value
    assert [level.name for level in changed.levels] == [level.name for level in whole.levels]


def test_without_the_cms_one_plain_block_is_left() -> None:
    changed = _config(NO_LEVELS)
    (level,) = changed.levels
    assert level.scope == "training"
    assert level.hidden > sum(other.hidden for other in _config(HOPE).levels[:2])
    assert {name for name in vars(changed) if getattr(changed, name) != getattr(_config(HOPE), name)} == {"levels"}


def test_there_is_no_other_row() -> None:
    with pytest.raises(InvalidRequest, match="w/o DGD"):
        maker("w/o everything", SHAPE)


def test_a_model_that_says_the_value_has_it_right() -> None:
    task = DialogueTask(replace(ablation.PLAN, num_test_rows=24))

    class Knowing(torch.nn.Module):
        """Likes each row's own next token best, by a margin."""

        def __init__(self, margin: float) -> None:
            super().__init__()
            self.margin = margin

        def initial_memory(self, batch_size: int, levels: bool = True) -> dict[str, torch.Tensor]:
            return {"row": torch.arange(batch_size), "read": torch.zeros(batch_size, dtype=torch.int64)}

        def hidden(
            self, tokens_BT: torch.Tensor, memory: dict[str, torch.Tensor], lengths_B: None = None
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            following = self.following(tokens_BT)
            return self.margin * torch.nn.functional.one_hot(following, task.vocab_size).float(), memory

        def logits(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return x_BTD

        def following(self, tokens_BT: torch.Tensor) -> torch.Tensor:
            rows = dict(task.tests(0))[TEXT]
            at = [int((rows.tokens_BT == row).all(1).nonzero()[0]) for row in tokens_BT]
            return rows.target_BT[at]

    sure = dict(ablation.text_and_values(Knowing(50.0), task, 0))
    assert sure == {"perplexity": pytest.approx(1.0), "recall": 1.0, "value nats": pytest.approx(0.0, abs=1e-6)}
    wrong = dict(ablation.text_and_values(Knowing(-50.0), task, 0))
    assert wrong["recall"] == 0.0
    none = dict(ablation.text_and_values(Knowing(0.0), task, 0))
    assert none["perplexity"] == pytest.approx(task.vocab_size)
    assert none["value nats"] == pytest.approx(math.log(task.vocab_size))


def test_most_answers_are_asked_of_the_tests() -> None:
    tests: dict[str, Examples] = dict(DialogueTask(ablation.PLAN).tests(0))
    begins = tests[VALUES].counts_BT[:, 1:] & ~tests[VALUES].counts_BT[:, :-1]
    assert int(begins.sum()) >= 100, "fewer make no share worth printing"


def test_the_table_has_its_rows_and_columns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--row", HOPE, "--row", NO_LEVELS, "--steps", "2", "--seeds", "1", "--results", str(tmp_path)]
    assert run_table("ablation", flags) == 0
    runs = Results(tmp_path / "ablation.jsonl").runs
    assert [(run.model, list(run.values)) for run in runs] == [
        (row, ["perplexity", "recall", "value nats"]) for row in (HOPE, NO_LEVELS)
    ]
    assert all(50 < run.values["perplexity"] < 2000 for run in runs)
    forbid_training(monkeypatch)
    assert run_table("ablation", flags) == 0
    with pytest.raises(AssertionError, match="there already"):
        run_table("ablation", [*flags, "--row", "w/o DGD"])


def test_without_flags_every_row_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ablation, "run_study", lambda study, _: asked.extend(name for name, _ in study.makers))
    given = argparse.Namespace(row=None, steps=None, rates=None, seeds=3)
    ablation.measure(given, Results(tmp_path / "x"))
    assert asked == list(CHANGES)


def test_remarks_stand_beside_the_paper_s() -> None:
    runs = [Run("ablation", row, 0, {}, {"perplexity": value}) for row, value in ((HOPE, 4.0), ("w/o DGD", 5.0))]
    said = remarks(runs)
    assert "w/o DGD x1.250" in said
    assert "w/o DGD 13.41 / 56.5 (x1.096)" in said
    assert "w/o inner-projection q 12.19 / 57.4 (x0.996)" in said

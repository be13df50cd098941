"""The table of cost: every figure is there, contestants take turns, and a state's bytes are what they must be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.evaluation.contestants import Shape, build
from engine.evaluation.study import Results, Run
from engine.evaluation.table_command import run_table
from engine.evaluation.tables import cost
from engine.evaluation.tables.cost import CostPlan, compare, remarks, state_bytes
from tests.tiny import tiny_model

PLAN = CostPlan(contexts=(64, 1024), num_rows=2, num_tokens=32, decode_tokens=2, repeats=3)
COLUMNS = [
    *("train tok/s", "read tok/s", "decode ms 64", "decode ms 1K"),
    *("state bytes 64", "state bytes 1K"),
]


def _models(*names: str) -> dict[str, nn.Module]:
    shape = Shape(4096, 32, 1, 2)
    return {name: build(name, shape) for name in names}


def test_every_figure_of_every_contestant() -> None:
    models = _models("hope", "transformer")
    before = {name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in models.items()}
    found = compare(models, PLAN, show_progress=False)
    assert list(found) == ["hope", "transformer"]
    for name, (values, notes) in found.items():
        assert list(values) == COLUMNS
        assert all(math.isfinite(value) and value > 0 for value in values.values())
        assert notes["parameters"] == pytest.approx(found["hope"][1]["parameters"], rel=0.02)
        assert all(torch.equal(value, before[name][key]) for key, value in models[name].state_dict().items())
        assert all(parameter.grad is None for parameter in models[name].parameters())


def test_attention_s_state_grows_and_hope_s_does_not() -> None:
    found = compare(_models("hope", "transformer"), PLAN, show_progress=False)
    hope, transformer = found["hope"][0], found["transformer"][0]
    assert hope["state bytes 64"] == hope["state bytes 1K"]
    # Keys and values of one layer of width 32, and an 8-byte position.
    assert transformer["state bytes 1K"] == 1024 * 2 * 32 * 4 + 8
    assert transformer["state bytes 64"] == 64 * 2 * 32 * 4 + 8


def test_levels_are_noted_beside_the_state() -> None:
    model = tiny_model()
    found = compare({"hope": tiny_model(vocab_size=4096)}, PLAN, show_progress=False)
    with_levels, without = (state_bytes(model.initial_memory(1, levels=levels)) for levels in (True, False))
    assert found["hope"][1]["level_bytes"] == with_levels - without > 0
    runs = [Run("cost", "hope", 0, {}, {}, {"level_bytes": 1234.0}), Run("cost", "samba", 0, {}, {}, {})]
    assert "1,234 to hope's" in remarks(runs)
    assert remarks(runs[1:]) == ""


@pytest.mark.parametrize(("num_threads", "clock_name"), [(1, "process_time"), (2, "perf_counter")])
def test_contestants_take_turns_and_the_first_round_does_not_count(
    num_threads: int, clock_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[nn.Module] = []
    clock = iter(float(number**2) for number in range(1000))
    train = cost._train

    def noted(model: nn.Module, tokens_BT: torch.Tensor) -> None:
        order.append(model)
        train(model, tokens_BT)

    monkeypatch.setattr(cost, "_train", noted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(time, clock_name, lambda: next(clock))
    models = _models("hope", "samba")
    found = compare(models, PLAN, show_progress=False)
    assert order == [*models.values()] * (PLAN.repeats + 1)
    # The first round reads the clock once a contestant, later ones twice: Hope's are readings 2 and 3, 6 and 7, 10 and
    # 11, whose squares are 5, 13 and 21 apart; Samba's 9, 17 and 25. The middle one counts.
    assert found["hope"][0]["train tok/s"] == pytest.approx(2 * 32 / 13)
    assert found["samba"][0]["train tok/s"] == pytest.approx(2 * 32 / 17)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of every comparison asked for; nothing is measured."""
    asked: list[list[str]] = []

    def compared(models: dict[str, nn.Module], plan: CostPlan, seed: int = 0) -> object:
        asked.append(list(models))
        return {name: ({"train tok/s": 1.0 + seed}, {"parameters": 1.0}) for name in models}

    monkeypatch.setattr(cost, "compare", compared)
    return asked


def _run(folder: Path, models: str, *flags: str) -> Callable[[], int]:
    common = ["--models", models, "--seeds", "2", "--width", "32", "--layers", "1", "--results", str(folder)]
    return lambda: run_table("cost", [*common, *flags])


def test_all_are_measured_together_or_not_at_all(tmp_path: Path, told: list[list[str]]) -> None:
    assert _run(tmp_path, "hope,samba")() == 0
    assert told == [["hope", "samba"]] * 2, "once a seed"
    runs = Results(tmp_path / "cost.jsonl").runs
    assert [(run.model, run.seed, run.values["train tok/s"]) for run in runs] == [
        *(("hope", 0, 1.0), ("samba", 0, 1.0)),
        *(("hope", 1, 2.0), ("samba", 1, 2.0)),
    ]
    assert _run(tmp_path, "hope,samba")() == 0
    assert len(told) == 2, "finished runs are not measured again"
    # A figure counts beside those it was measured with: with one more contestant, all are measured again.
    assert _run(tmp_path, "hope,samba,titans")() == 0
    assert told[2:] == [["hope", "samba", "titans"]] * 2
    assert _run(tmp_path, "hope,samba", "--repeats", "2")() == 0
    assert told[4:] == [["hope", "samba"]] * 2


def test_a_round_cut_short_is_measured_again_whole(tmp_path: Path, told: list[list[str]]) -> None:
    assert _run(tmp_path, "hope,samba")() == 0
    path = tmp_path / "cost.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert _run(tmp_path, "hope,samba")() == 0
    assert told == [["hope", "samba"]] * 3
    kept = [(run.model, run.seed) for run in Results(path).runs]
    assert sorted(kept) == [("hope", 0), ("hope", 1), ("samba", 0), ("samba", 1)]

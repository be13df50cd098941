"""`hope train` from its flags to its folder: run, go on, begin with another's weights, and say what is wrong."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import InvalidRequest
from engine.evaluation.contestants import num_parameters
from engine.model.baselines import BASELINES
from engine.model.baselines.common import Baseline
from engine.model.hope import Hope
from engine.model.weights import TOKENIZER_FILE, WEIGHTS_FILE, load_checkpoint, load_contestant
from engine.training import command
from engine.training.command import run_training
from engine.training.dialogue import Stage
from engine.training.flags import DEFAULT_CURRICULUM
from engine.training.run_state import STATE_FILE
from engine.training.throughput import Setting, Speed, settings_of
from tests.engine.training.samples import dialogue_tokenizer, log_of
from tests.tiny import same_bits

SHAPE = ("--width", "32", "--layers", "1", "--heads", "2", "--threads", "1")
SMALL = (
    *SHAPE,
    "--no-compile",
    "--stage",
    "0:40:2:2:0.3",
    "--cooldown",
    "1",
    "--save-every",
    "1",
    "--probe-every",
    "2",
)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def header(folder: Path) -> dict[str, str]:
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        return dict(file.metadata())


def said(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int | str | None, str, str]:
    """How the command ended, and what it said on both streams."""
    with pytest.raises(SystemExit) as ended:
        run_training(flags)
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's file."""
    path = tmp_path_factory.mktemp("tokenizer") / TOKENIZER_FILE
    dialogue_tokenizer().save(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps without a data folder and without a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run_training(["--out", str(folder), "--steps", "2", *SMALL]) == 0
    return folder


def test_a_run_without_data_ends_with_a_model(trained: Path) -> None:
    model, tokenizer = load_checkpoint(trained)
    assert (model.config.width, model.config.num_layers, model.config.num_heads) == (32, 1, 2)
    assert len(tokenizer.encode("What is the name of my dog?")) < 12, "a tokenizer that was trained on dialogues"
    log = log_of(trained)
    assert [row["step"] for row in log] == [1, 2]
    assert log[-1]["tokens"] == 2 * 2 * 40
    assert "recall" in log[-1]
    notes = header(trained)
    assert (notes["steps"], notes["tokens_seen"]) == ("2", "160")
    assert shlex.split(notes["command"]) == ["hope", "train", "--out", str(trained), "--steps", "2", *SMALL]


def test_a_run_goes_on_where_it_was(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "run")]
    assert run_training([*flags, "--steps", "1"]) == 0
    first = weights(tmp_path / "run")
    tokenizer_before = (tmp_path / "run" / TOKENIZER_FILE).read_bytes()
    assert run_training([*SMALL, "--out", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert [row["step"] for row in log_of(tmp_path / "run")] == [1, 2, 3]
    assert not same_bits(weights(tmp_path / "run"), first)
    assert (tmp_path / "run" / TOKENIZER_FILE).read_bytes() == tokenizer_before
    assert f"3 steps, {3 * 2 * 40} tokens; the model lies in {tmp_path / 'run'}" in capsys.readouterr().out


def test_the_same_flags_train_the_same_model(tokenizer: Path, tmp_path: Path) -> None:
    for name, seed in (("one", "5"), ("same", "5"), ("other", "6")):
        flags = [*SMALL, "--tokenizer", str(tokenizer), "--steps", "1", "--seed", seed]
        assert run_training([*flags, "--out", str(tmp_path / name)]) == 0
    assert same_bits(weights(tmp_path / "one"), weights(tmp_path / "same"))
    assert not same_bits(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_a_run_begins_with_another_checkpoints_weights_once(tokenizer: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_training([*SMALL, "--tokenizer", str(tokenizer), "--out", str(first), "--steps", "1"]) == 0
    start = [*SMALL, "--out", str(second), "--start", str(first), "--seed", "8"]
    assert run_training([*start, "--steps", "1", "--learning-rate", "0"]) == 0
    assert same_bits(weights(second), weights(first))
    assert (second / TOKENIZER_FILE).read_bytes() == tokenizer.read_bytes()
    assert [row["step"] for row in log_of(second)] == [1], "its own steps, from the first"
    assert run_training([*start, "--steps", "2", "--cooldown", "0"]) == 0
    moved = weights(second)
    assert not same_bits(moved, weights(first))
    assert run_training([*start, "--steps", "3", "--learning-rate", "0"]) == 0
    assert same_bits(weights(second), moved), "a run that has begun goes on with its own weights"


def test_a_run_may_begin_with_longer_memories(tokenizer: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_training([*SMALL, "--tokenizer", str(tokenizer), "--out", str(first), "--steps", "1"]) == 0
    start = [*SMALL, "--start", str(first), "--retain", "0,2.5", "--out", str(second)]
    for steps in ("1", "2"):
        # Once: a run that goes on is not moved again.
        assert run_training([*start, "--steps", steps, "--learning-rate", "0"]) == 0
    before, after = weights(first), weights(second)
    bias = "blocks.0.titans.alpha_bias"
    assert (after[bias] - before[bias]).tolist() == pytest.approx([0, 2.5])
    assert same_bits({**after, bias: before[bias]}, before)
    with pytest.raises(InvalidRequest, match="3 numbers for 2 heads"):
        run_training([*start[:-4], "--retain", "0,1,2", "--out", str(tmp_path / "third")])


def test_a_model_takes_any_field_of_its_shape_and_keeps_it(tokenizer: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    flags = "momentum=true", "adaptive=key,value", "write_rule=gradient", "max_drift=3.5", "head_mixing=none"
    chosen = [part for flag in flags for part in ("--set", flag)]
    fresh = [*SMALL, *chosen, "--tokenizer", str(tokenizer), "--out", str(first), "--steps", "1"]
    assert run_training(fresh) == 0
    shape = load_checkpoint(first)[0].config
    assert (shape.momentum, shape.adaptive, shape.write_rule) == (True, ("key", "value"), "gradient")
    assert (shape.max_drift, shape.head_mixing, shape.width) == (3.5, "none", 32)
    # Another run begins with that shape, but for what its own flags say.
    start = ["--start", str(first), "--set", "head_mixing=linear", "--out", str(second), "--steps", "1"]
    assert run_training([*SMALL, *start]) == 0
    assert load_checkpoint(second)[0].config == replace(shape, head_mixing="linear")


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_of_hopes_size_trains_and_goes_on_as_a_hope_does(name: str, tokenizer: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--tokenizer", str(tokenizer)]
    assert run_training([*flags, "--out", str(tmp_path / "hope"), "--steps", "1"]) == 0
    for folder, last in (("whole", 2), ("parts", 1), ("parts", 2)):
        arguments = [*flags, "--model", name, "--cooldown", "0", "--out", str(tmp_path / folder)]
        assert run_training([*arguments, "--steps", str(last)]) == 0
    model, _ = load_contestant(tmp_path / "whole")
    assert isinstance(model, Baseline)
    assert same_bits(model.state_dict(), load_contestant(tmp_path / "parts")[0].state_dict())
    assert num_parameters(model) == pytest.approx(num_parameters(load_checkpoint(tmp_path / "hope")[0]), rel=0.01)
    with pytest.raises(InvalidRequest, match=f"'{name}'; here only a Hope"):
        load_checkpoint(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("widht=3", "'widht' is none of adaptive, chain"),
        ("momentum=yes", "momentum is true or false, not 'yes'"),
        ("width=many", "width is a number, not 'many'"),
    ],
)
def test_a_field_that_cannot_be_is_said(flag: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "--set", flag)
    assert status == 2
    assert reason in err


@pytest.mark.parametrize(("flags", "expected"), [((), 1), (("--compile",), 1), (("--no-compile",), 0)])
def test_it_compiles_unless_told_not_to(
    flags: tuple[str, ...], expected: int, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Hope] = []
    monkeypatch.setattr(command, "compile_segments", compiled.append)
    given = [flag for flag in SMALL if flag != "--no-compile"]
    where = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert run_training([*given, *where, *flags]) == 0
    assert len(compiled) == expected


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "--help")
    assert status == 0
    assert " ".join(DEFAULT_CURRICULUM) in " ".join(out.split())
    examples = [line.strip() for line in out.splitlines() if line.startswith("  hope train ")]
    assert len(examples) >= 3
    options = set(re.findall(r"^  (--[a-z-]+)", out, re.MULTILINE))
    assert {flag for example in examples for flag in re.findall(r"--[a-z-]+", example)} <= options


@pytest.mark.parametrize(
    "stage",
    [
        "nonsense",
        "0:40:2",
        "0:40:2:2:0.3:1:7",
        "0:40:2:2:0.3:0",
        "0:40:2:2:0.3:x",
        "0:x:2:2:0.3",
        "0:0:2:2:0.3",
        "0:40:2:1:0.3",
        "0:40:2:2:1.5",
    ],
)
def test_a_stage_that_cannot_be_is_said_before_anything_is_done(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(
        capsys, *SHAPE, "--no-compile", "--steps", "1", "--out", str(tmp_path / "run"), "--stage", stage
    )
    assert status == 2
    last = err.splitlines()[-1]
    assert "--stage" in last
    assert stage in last
    assert "FIRST:TOKENS:ROWS:FACTS:TALK" in last
    assert not (tmp_path / "run").exists()


def test_longer_memories_need_a_checkpoint_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, *SMALL, "--retain", "0,1", "--out", str(tmp_path / "run"))
    assert status == 2
    assert "--start" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_what_is_blended_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, *SMALL, "--blend", "elsewhere", "0.5", "--out", str(tmp_path / "run"))
    assert status == 2
    assert "--export" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_curriculum_begins_at_step_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, *SHAPE, "--no-compile", "--out", str(tmp_path / "run"), "--stage", "5:40:2:2:0.3")
    assert status == 2
    assert "--stage" in err.splitlines()[-1]
    assert "0" in err.splitlines()[-1]


def test_the_flags_of_scale_reach_the_run(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It was a long and quiet day.\n" * 200)
    flags = [*SMALL, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "run"), "--steps", "2"]
    flags += ["--text", str(tmp_path / "*.txt"), "--text-share", "1", "--precision", "bfloat16", "--checkpointing"]
    assert run_training([*flags, "--optimizer", "muon"]) == 0
    plan = json.loads(header(tmp_path / "run")["plan"])
    assert (plan["optimizer"], plan["precision"], plan["checkpointing"]) == ("muon", "bfloat16", True)
    with safe_open(tmp_path / "run" / STATE_FILE, framework="pt") as file:
        progress = file.metadata()
    assert json.loads(progress["text"])["given"] == 2 * 2, "every row of both steps is text"
    with pytest.raises(InvalidRequest, match="'muon', not 'adamw'"):
        run_training(flags)


@pytest.mark.parametrize("share", ["0", "1.5", "half"])
def test_a_share_is_a_share(share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, *SMALL, "--out", str(tmp_path / "run"), "--text-share", share)
    assert status == 2
    assert f"'{share}' is no share" in err


def test_throughput_is_printed_and_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def measured(
        config: ModelConfig, stage: Stage, settings: tuple[Setting, ...], device: str, *, show_progress: bool
    ) -> list[Speed]:
        asked.extend((config.width, stage.num_tokens, settings, device))
        return [Speed(Setting("as it is"), 1234.0, 1.0, 5 * 2**20)]

    monkeypatch.setattr(command, "measure", measured)
    assert run_training([*SMALL, "--out", str(tmp_path / "run"), "--throughput"]) == 0
    assert asked == [32, 40, settings_of(1), "cpu"]
    assert re.search(r"as it is +1,234 +1\.00 +5 MiB", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()


def test_processes_that_torchrun_did_not_start_are_no_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InvalidRequest, match="torchrun --nproc-per-node"):
        run_training([*SMALL, "--out", str(tmp_path / "run"), "--parallel", "fsdp"])
    assert not (tmp_path / "run").exists()

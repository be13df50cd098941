"""Two processes train what one trains: the same losses and weights up to rounding, and each goes on with the other's.

The processes are real, started by torchrun, and talk through gloo on the CPU.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import InvalidRequest
from engine.training.command import run_training
from engine.training.run_state import STATE_FILE
from engine.training.team import ALONE, Team, join
from engine.training.trainer import Trainer
from tests.engine.training.samples import PLAN, STAGE, dialogue_tokenizer, log_of, new_trainer
from tests.tiny import memory_distance

REPOSITORY = Path(__file__).parents[3]
# Three rows for two processes, whose dialogues go on over two steps; saved in their middle.
FLAGS = (
    *("--width", "32", "--layers", "2", "--heads", "2", "--threads", "1", "--no-compile", "--cooldown", "0"),
    *("--stage", "0:70:3:2:0.3:2", "--save-every", "3", "--probe-every", "2", "--text-share", "0.4"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def torchrun(*flags: str) -> subprocess.CompletedProcess[str]:
    """`hope train` in two processes."""
    how = ("--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *how, "-m", "engine.training.command", *flags],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def close(found: Path, expected: Path) -> None:
    """Whether two runs are the same up to rounding, to everything that a run goes on from."""
    logs = log_of(found), log_of(expected)
    assert [row.keys() for row in logs[0]] == [row.keys() for row in logs[1]]
    for row, own in zip(*logs, strict=True):
        assert row == pytest.approx(own, rel=1e-5)
    states = [load_file(folder / STATE_FILE) for folder in (found, expected)]
    assert memory_distance(*[_of(state, "memory|") for state in states]) < 1e-4
    # Adam's first steps are the sign of a gradient, so that of one next to nothing is next to anything.
    assert memory_distance(*[_of(state, "weight|") for state in states]) < 1e-4
    for moment in ("exp_avg|", "exp_avg_sq|"):
        assert memory_distance(*[_of(state, moment) for state in states]) < 1e-4


def _of(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    dialogue_tokenizer().save(tmp_path / "tokenizer.json")
    (tmp_path / "text.txt").write_text("".join(f"And then came day {day}.\n" for day in range(200)))
    flags = [*FLAGS, "--tokenizer", str(tmp_path / "tokenizer.json"), "--text", str(tmp_path / "text.txt")]
    if kind == "fsdp":
        flags.append("--checkpointing")
    for steps in ("3", "5"):
        assert run_training([*flags, "--steps", steps, "--out", str(tmp_path / "one")]) == 0
    # The first three steps together, the others alone; and the other way round.
    both, alone = [*flags, "--out", str(tmp_path / "both")], [*flags, "--out", str(tmp_path / "alone")]
    ended = torchrun(*both, "--steps", "3", "--parallel", kind)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("done: 3 steps") == 1, "one of them speaks"
    assert "Warning" not in ended.stderr
    assert run_training([*both, "--steps", "5"]) == 0
    close(tmp_path / "both", tmp_path / "one")
    assert run_training([*alone, "--steps", "3"]) == 0
    ended = torchrun(*alone, "--steps", "5", "--parallel", kind)
    assert ended.returncode == 0, ended.stderr
    close(tmp_path / "alone", tmp_path / "one")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_rows_are_shared_whole_and_evenly(size: int) -> None:
    for num_rows in range(size, 12):
        shares = [list(range(num_rows))[Team("ddp", rank, size).rows(num_rows)] for rank in range(size)]
        assert [row for share in shares for row in share] == list(range(num_rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_of_the_loss_have_the_batchs_as_their_mean(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path / "run")
    batch = trainer.data.batch(0, STAGE)
    loss = trainer.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.optimizer.zero_grad()
    shares = []
    for rank in range(2):
        trainer.team = Team("none", rank, 2)
        share = trainer.loss(batch) / 2
        share.backward()  # type: ignore[no-untyped-call]
        shares.append(float(share.detach()))
    assert sum(shares) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert abs(shares[0] - shares[1]) > 1e-4, "of rows of their own"
    summed = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert memory_distance(summed, gradients) < 1e-4


def test_alone_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(None, "cpu") == (ALONE, "cpu")
    assert join("none", "cpu") == (ALONE, "cpu")


@pytest.mark.parametrize(("kind", "size", "words"), [("ddp", None, "torchrun"), ("none", "2", "--parallel ddp")])
def test_what_cannot_be_together_is_said(
    kind: str, size: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InvalidRequest, match=words):
        join(kind, "cpu")


@pytest.mark.parametrize(
    ("team", "changes", "words"),
    [
        (Team("ddp", 0, 4), {}, "cannot share a batch of 3 rows"),
        (Team("ddp", 0, 2), {"optimizer": "dgd"}, "one process"),
        (Team("fsdp", 0, 2), {"optimizer": "muon"}, "whole matrices"),
    ],
)
def test_what_does_not_work_in_parts_is_refused(
    team: Team, changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Team, "wrap", lambda self, objective: objective)
    alone = new_trainer(tmp_path / "alone")
    with pytest.raises(InvalidRequest, match=words):
        Trainer(alone.model, alone.tokenizer, alone.data, replace(PLAN, **changes), tmp_path / "run", team)

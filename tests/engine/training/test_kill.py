"""A training killed with SIGKILL and started again has the losses and weights of one never killed, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.model.weights import load_checkpoint
from engine.training.command import run_training
from engine.training.trainer import LOG_FILE
from tests.engine.training.samples import dialogue_tokenizer, log_of
from tests.tiny import same_bits

REPOSITORY = Path(__file__).parents[3]
SHAPE = ("--width", "32", "--layers", "1", "--heads", "2", "--threads", "1", "--no-compile", "--cooldown", "3")
STEPS, KILLED_AFTER, SAVE_EVERY = 60, 10, 4


def num_logged(folder: Path) -> int:
    log = folder / LOG_FILE
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def kill_in_the_middle(flags: list[str], folder: Path) -> None:
    """Runs `hope train` in a process of its own until it has logged some steps, and kills it there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.training.command", *flags],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while num_logged(folder) < KILLED_AFTER:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert KILLED_AFTER <= num_logged(folder) < STEPS


# Segments of 3 against a save every 4 steps: saved in the middle of a dialogue.
@pytest.mark.parametrize(("stage", "with_text"), [("0:40:2:2:0.3", False), ("0:40:2:2:0.3:3", True)])
def test_killed_and_started_again_is_never_killed(stage: str, with_text: bool, tmp_path: Path) -> None:
    dialogue_tokenizer().save(tmp_path / "tokenizer.json")
    flags = [*SHAPE, "--tokenizer", str(tmp_path / "tokenizer.json"), "--stage", stage, "--steps", str(STEPS)]
    flags += ["--save-every", str(SAVE_EVERY), "--probe-every", "25"]
    if with_text:
        text = "".join(f"The tale of day {day} is a long one.\n" for day in range(500))
        (tmp_path / "tales.txt").write_text(text)
        flags += ["--text", str(tmp_path / "*.txt"), "--text-share", "0.5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_training([*flags, "--out", str(whole)]) == 0
    kill_in_the_middle([*flags, "--out", str(killed)], killed)
    assert run_training([*flags, "--out", str(killed)]) == 0
    assert log_of(killed) == log_of(whole)
    assert len(log_of(whole)) == STEPS
    assert same_bits(load_checkpoint(killed)[0].state_dict(), load_checkpoint(whole)[0].state_dict())

"""A run's state comes back as it went, in the format that older runs have, and a log ends where its state does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.training import run_state
from engine.training.run_state import STATE_FILE, RunState, cut_log, has_run, read_state, write_state
from tests.tiny import same_bits

STATE = RunState(
    {"a.b": torch.randn(2, 3), "c": torch.zeros(1)},
    {"a.b": {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3).t()}},
    {"titans.0.memory.w2": torch.randn(2, 2)},
    {"step": "3", "tokens_seen": "12"},
)


def test_a_state_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path, STATE)
    assert has_run(tmp_path)
    state = read_state(tmp_path)
    assert same_bits(state.weights, STATE.weights)
    assert state.optimizer.keys() == STATE.optimizer.keys()
    assert same_bits(state.optimizer["a.b"], STATE.optimizer["a.b"])
    assert same_bits(state.memory, STATE.memory)
    assert state.progress == STATE.progress
    assert {path.name for path in tmp_path.iterdir()} == {STATE_FILE}


def test_the_format_is_the_one_of_the_first_runs(tmp_path: Path) -> None:
    first = {"weight|a": torch.ones(2), "step|a": torch.tensor(1.0), "exp_avg|a": torch.zeros(2)}
    save_file(first, tmp_path / STATE_FILE, metadata={"step": "1", "tokens_seen": "9"})
    state = read_state(tmp_path)
    assert state.memory == {}
    assert state.optimizer.keys() == {"a"}
    write_state(tmp_path, state)
    assert same_bits(load_file(tmp_path / STATE_FILE), first)


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, STATE)

    def dies(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(run_state, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        write_state(tmp_path, RunState({}, {}))
    assert same_bits(read_state(tmp_path).weights, STATE.weights)


def test_a_log_is_cut_behind_the_last_save(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    cut_log(log, 3)
    assert not log.exists()
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    cut_log(log, 3)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}

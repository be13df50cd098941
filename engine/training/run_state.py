"""What a run goes on from: one file with weights, optimizer, carried memory and progress, put in place at once.

The format of `state.safetensors`: tensors `weight|NAME`, `memory|NAME`, and `FIELD|PARAMETER` of the optimizer; the
header holds `step`, `tokens_seen`, and where they apply `optimizer` and `text`. Knows no trainer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

STATE_FILE = "state.safetensors"
WEIGHT, MEMORY = "weight", "memory"


@dataclass(frozen=True)
class RunState:
    """A run between two steps; all tensors are whole and on the CPU.

    Attributes:
        weights: by parameter.
        optimizer: by parameter and field.
        memory: what the rows of the last step remember, where the next step goes on with them.
        progress: the file's header.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    memory: dict[str, Tensor] = field(default_factory=dict)
    progress: dict[str, str] = field(default_factory=dict)


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return (folder / STATE_FILE).exists()


def write_state(folder: Path, state: RunState) -> None:
    """Replaces the folder's state; a process killed on the way leaves the one before."""
    tensors = {f"{WEIGHT}|{name}": value for name, value in state.weights.items()}
    for parameter, entries in state.optimizer.items():
        tensors |= {f"{entry}|{parameter}": value for entry, value in entries.items()}
    tensors |= {f"{MEMORY}|{name}": value for name, value in state.memory.items()}
    partial = folder / (STATE_FILE + ".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata=state.progress)
    partial.replace(folder / STATE_FILE)


def read_state(folder: Path) -> RunState:
    """The folder's state."""
    weights, memory = {}, {}
    optimizer: dict[str, dict[str, Tensor]] = defaultdict(dict)
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            entry, _, name = key.partition("|")
            value = file.get_tensor(key)
            if entry == WEIGHT:
                weights[name] = value
            elif entry == MEMORY:
                memory[name] = value
            else:
                optimizer[name][entry] = value
        return RunState(weights, dict(optimizer), memory, file.metadata())


def cut_log(log: Path, step: int) -> None:
    """Takes back what was logged after `step`, the last save: those steps are made again."""
    if not log.exists():
        return
    # A line that has no end was being written when the run was killed.
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    partial = log.with_name(log.name + ".partial")
    partial.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    partial.replace(log)

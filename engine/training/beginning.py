"""What a run of training begins with: another checkpoint's weights, and the runs that made them.

Knows no trainer and no flags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.errors import InvalidRequest
from engine.model.baselines.common import Baseline
from engine.model.hope import Hope
from engine.model.weights import checkpoint_notes, load_contestant
from engine.training.run_state import has_run


def history(folder: Path) -> tuple[dict[str, str], ...]:
    """Every run behind a checkpoint, its own last: command, steps and tokens seen."""
    notes = checkpoint_notes(folder)
    own = {name: notes[name] for name in ("command", "steps", "tokens_seen") if name in notes}
    return (*json.loads(notes.get("earlier", "[]")), own)


def start_from(model: Hope | Baseline, folder: Path) -> None:
    """Gives the model another checkpoint's weights to begin with; what that one has not keeps its own beginning.

    Raises:
        InvalidRequest: a weight of the checkpoint has no place in the model.
    """
    weights, own = load_contestant(folder)[0].state_dict(), model.state_dict()
    if any(name not in own or own[name].shape != value.shape for name, value in weights.items()):
        raise InvalidRequest(f"the checkpoint in '{folder}' has another shape than the model to train", param="start")
    model.load_state_dict(own | weights)


def retain_longer(model: Hope | Baseline, added_H: Sequence[float]) -> None:
    """Adds to the retention biases of the heads, the same in every layer: each 1 divides 1 - alpha by some 2.7.

    Raises:
        InvalidRequest: a model without retention gates, or with another number of heads.
    """
    biases = [value for name, value in model.named_parameters() if name.endswith(".alpha_bias")]
    if any(len(bias) != len(added_H) for bias in biases) or not biases:
        heads = len(biases[0]) if biases else 0
        raise InvalidRequest(f"{len(added_H)} numbers for {heads} heads that forget", param="retain")
    with torch.no_grad():
        for bias in biases:
            bias.add_(bias.new_tensor(added_H))


def earlier_runs(out: Path, start: Path | None) -> tuple[dict[str, str], ...]:
    """The runs behind the weights that a run in `out` began with, or will begin with: those of `start`."""
    if has_run(out):
        return history(out)[:-1]
    return () if start is None else history(start)

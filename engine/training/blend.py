"""Weights between a run's and those it began with: what it learned, and most of what it would have forgotten.

A short run on new material moves weights that old abilities rest on; on the straight line back to where it began, both
are mostly there (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022). Knows no run and no card.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import InvalidRequest
from engine.model.hope import Hope
from engine.model.weights import load_checkpoint


@dataclass(frozen=True)
class Blend:
    """What a run's weights are blended with: a checkpoint's folder, the run's share, the command that asked for it."""

    other: Path
    share: float
    command: str


def share_of(text: str) -> float:
    """A share from 0 to 1.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise InvalidRequest(f"a share is a number between 0 and 1, not {text}", param="blend")
    return share


@torch.no_grad()
def blend(model: Hope, other: Path, share: float) -> None:
    """Moves a model's weights towards another checkpoint's: `share` of its own stay, the rest are the other's.

    Raises:
        InvalidRequest: the other checkpoint has another shape.
    """
    theirs, own = load_checkpoint(other)[0].state_dict(), model.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in theirs.items()}:
        raise InvalidRequest(f"the checkpoint in '{other}' has another shape than the run's", param="blend")
    model.load_state_dict({name: torch.lerp(theirs[name], value, share) for name, value in own.items()})

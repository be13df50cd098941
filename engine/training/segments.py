"""What training does to the one hot function, a chunk of a layer: compile it, keep it in float32, compute it again.

Each replaces `SelfModifyingTitans.segment` by a wrapped self, so that the model knows nothing of it; a model without
Titans is left as it is. Compiled first, float32 around that, checkpointed outermost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from engine.config import TITANS
from engine.model.baselines.common import Baseline
from engine.model.grid import Piece
from engine.model.hope import Hope, HopeBlock
from engine.model.projections import State

Segment = Callable[[State, State, Piece], tuple[Tensor, State]]


def compile_segments(model: Hope | Baseline) -> None:
    """Compiles every full chunk; worth its minute of start-up on long runs."""
    _replace(model, lambda segment: torch.compile(segment, dynamic=False))


def keep_segments_in_float32(model: Hope | Baseline) -> None:
    """Takes the memories' reads and writes out of autocast: what is written thousands of times keeps its digits."""
    _replace(model, _in_float32)


def checkpoint_segments(model: Hope | Baseline) -> None:
    """Keeps of every chunk only what goes in, and computes it again on the way back: less memory, the same numbers."""
    _replace(model, _computed_again)


def _replace(model: Hope | Baseline, wrap: Callable[[Segment], Segment]) -> None:
    if not isinstance(model, Hope) or model.config.mixer != TITANS:
        return
    for block in model.blocks:
        assert isinstance(block, HopeBlock)
        block.titans.segment = wrap(block.titans.segment)  # type: ignore[method-assign, assignment]


def _in_float32(segment: Segment) -> Segment:
    def apply(state: State, parts: State, piece: Piece) -> tuple[Tensor, State]:
        device = next(iter(parts.values())).device.type
        with torch.autocast(device, enabled=False):
            return segment(_float32(state), _float32(parts), piece)

    return apply


def _float32(tensors: State) -> State:
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _computed_again(segment: Segment) -> Segment:
    def apply(state: State, parts: State, piece: Piece) -> tuple[Tensor, State]:
        if not torch.is_grad_enabled():
            return segment(state, parts, piece)

        def run(*tensors: Tensor) -> tuple[Tensor, State]:
            given = iter(tensors)
            return segment(
                dict(zip(state_names, given, strict=False)), dict(zip(part_names, given, strict=True)), piece
            )

        # Tensors one by one: autograd then sees, and frees, what is kept of them.
        state_names, part_names = tuple(state), tuple(parts)
        # Nothing in a chunk is random: there is no generator's state to keep.
        result: Any = checkpoint(run, *state.values(), *parts.values(), use_reentrant=False, preserve_rng_state=False)
        y, after = result
        return y, after

    return apply

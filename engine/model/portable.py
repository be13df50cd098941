"""A session's memory on its way to and from the store: half the bytes, nothing that says nothing.

Floats travel as bfloat16, open chunks without their empty slots, zero tensors not at all. A memory is brought to
this precision when its turn ends, before anyone uses it again, so that saved and loaded is never saved, bit for bit
(law 3). Also what can be said of a memory from outside: norms, drift, clocks. Knows no Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.config import TITANS
from engine.model.hope import POSITION, Hope, HopeBlock, Memory

OPEN_CHUNK = ".open."


def pack_row(memory: Memory, frame: int) -> dict[str, Tensor]:
    """The stored tensors of one row (batch size 1)."""
    filled = int(memory[POSITION]) % frame
    packed = {}
    for name, value in memory.items():
        row = value[0]
        if OPEN_CHUNK in name:
            row = row[:, :filled]
        if row.is_floating_point():
            row = row.to(torch.bfloat16)
        if row.numel() and bool(row.any()):
            packed[name] = row.contiguous()
    return packed


def unpack_row(packed: Mapping[str, Tensor], model: Hope) -> Memory:
    """The memory that `pack_row` packed, float32, batch size 1.

    What is not there was zero, once something was read; before that it is the initial state, which need not be.
    """
    make = torch.zeros_like if POSITION in packed else torch.clone
    with torch.no_grad():
        memory = {name: make(value) for name, value in model.initial_memory(1).items()}
    for name, stored in packed.items():
        value = stored.unsqueeze(0).to(memory[name].dtype)
        if OPEN_CHUNK in name:
            value = functional.pad(value, (0, 0, 0, memory[name].shape[2] - value.shape[2]))
        memory[name] = value
    return memory


def fits(packed: Mapping[str, Tensor], model: Hope) -> bool:
    """Whether these can be the tensors that `pack_row` made of a memory of this model; all their numbers are finite."""
    whole = {name: value[0] for name, value in model.initial_memory(1).items()}
    position = packed.get(POSITION, torch.zeros((), dtype=torch.int64))
    if position.shape or position.dtype != torch.int64 or int(position) < 0:
        return False
    filled = int(position) % model.config.chunk_projections
    for name, value in packed.items():
        if name not in whole:
            return False
        expected = whole[name][:, :filled] if OPEN_CHUNK in name else whole[name]
        dtype = torch.bfloat16 if expected.is_floating_point() else expected.dtype
        if (value.shape, value.dtype) != (expected.shape, dtype) or not bool(torch.isfinite(value).all()):
            return False
    return True


@dataclass(frozen=True)
class LevelState:
    """One level of a memory in numbers. `norm` is the Frobenius norm of what was learned, `drift` that over the
    norm of the initial state."""

    name: str
    scope: str
    updates: int
    parameters: int
    norm: float
    drift: float


def describe(memory: Memory, model: Hope) -> list[LevelState]:
    """Every level of one row, fast to slow; attention, which writes no weights, is none."""
    config = model.config
    states = [_titans_state(memory, model)] if config.mixer == TITANS else []
    for number, level in enumerate(config.levels):
        pairs = []
        for index, block in enumerate(model.blocks):
            assert isinstance(block, HopeBlock)
            chain = block.levels[number]
            for part in ("w2", "w1"):
                start = getattr(chain, part)
                learned = memory.get(f"{level.name}.{index}.{part}")
                pairs.append((torch.zeros(1) if learned is None else learned, start))
        updates = memory.get(f"{level.name}.updates")
        states.append(_level_state(level.name, level.scope, 0 if updates is None else int(updates), pairs))
    return states


def distance(before: Memory, after: Memory, level: str) -> float:
    """Frobenius norm of how far a level's fast weights moved."""
    names = [name for name in before if level_of(name) == level and name.endswith((".w1", ".w2"))]
    return _norm([after[name] - before[name] for name in names])


def level_of(name: str) -> str:
    """The level a memory tensor belongs to; the position and what attention keeps belong to `titans`."""
    return ".".join(name.split(".")[:2]) if name.startswith("cms.") else TITANS


def _titans_state(memory: Memory, model: Hope) -> LevelState:
    pairs = []
    for index, block in enumerate(model.blocks):
        assert isinstance(block, HopeBlock)
        for stack in block.titans.stacks:
            for part in ("w2", "w1"):
                start: Tensor = getattr(block.titans.initial[stack], part)
                value = memory[f"{TITANS}.{index}.{stack}.{part}"]
                pairs.append((value - start if model.config.decay_towards == "zero" else value, start))
    clock = int(memory[POSITION]) // model.config.chunk_memory
    return _level_state(TITANS, "session", clock, pairs)


def _level_state(name: str, scope: str, updates: int, pairs: list[tuple[Tensor, Tensor]]) -> LevelState:
    norm = _norm([learned for learned, _ in pairs])
    initial = _norm([start for _, start in pairs])
    parameters = sum(start.numel() for _, start in pairs)
    return LevelState(name, scope, updates, parameters, norm, norm / max(initial, 1e-12))


def _norm(tensors: Sequence[Tensor]) -> float:
    """Frobenius norm of all of them: few calls, for a server takes it after every turn."""
    return float(torch.linalg.vector_norm(torch.cat([tensor.detach().float().flatten() for tensor in tensors])))

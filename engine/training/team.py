"""Processes that train one model together, started by torchrun: DDP (all weights everywhere) or FSDP2 (in pieces).

All see the same batch and each takes its share of the rows, so that a run does not depend on how many they are. Only
the first one writes. Knows the model's parts, as FSDP wraps them one by one; no batches and no files.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from engine.errors import InvalidRequest
from engine.model.hope import Hope, HopeBlock, Memory
from engine.training.objective import Objective

NONE, DDP, FSDP = "none", "ddp", "fsdp"
KINDS = (NONE, DDP, FSDP)
START = "torchrun --nproc-per-node 2 --no-python -- hope train --parallel ddp ..."


@dataclass(frozen=True)
class Team:
    """This process among `size` processes; alone by default.

    Attributes:
        kind: one of `KINDS`.
        rank: this process's number, from 0.
    """

    kind: str = NONE
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def rows(self, num_rows: int) -> slice:
        """This process's share of a batch's rows; shares differ by one row at most."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def wrap(self, objective: Objective) -> nn.Module:
        """The module to call for the loss. Its gradients are means over the processes, of whole or cut weights.

        Raises:
            InvalidRequest: the initial memory depends on weights that would be in pieces (`fsdp` and a decay towards
                zero).
        """
        if self.kind == DDP:
            model = objective.model
            # A row shorter than a chunk moves no momentum, and one that goes on has no initial state.
            sometimes_idle = isinstance(model, Hope) and (
                model.config.momentum or model.config.decay_towards != "initial"
            )
            return DistributedDataParallel(objective, find_unused_parameters=sometimes_idle)
        if self.kind == FSDP:
            _shard(objective, self.size)
        return objective

    def total(self, value: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gathered(self, rows: Memory) -> Memory:
        """All processes' rows in order, in the leader; in the others nothing."""
        if self.size == 1:
            return rows
        parts: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(rows, parts)
        return {name: torch.cat([part[name] for part in parts]) for name in rows} if parts else {}

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Team()


def join(kind: str | None, device: str) -> tuple[Team, str]:
    """Joins the processes that torchrun started; returns the team and this process's device.

    Args:
        kind: one of `KINDS`; None means `ddp` where torchrun started several, else `none`.
        device: `cpu`, or `cuda`, of which every process gets its own.

    Raises:
        InvalidRequest: torchrun did not start this process, or did so and `kind` is `none`.
    """
    started = "WORLD_SIZE" in os.environ
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = kind or (DDP if size > 1 else NONE)
    if kind == NONE:
        if size > 1:
            raise InvalidRequest(f"{size} processes cannot all train the same run: --parallel ddp or fsdp", param=kind)
        return ALONE, device
    if not started:
        raise InvalidRequest(f"--parallel {kind} is for processes that torchrun starts: {START}", param="parallel")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Team(kind, dist.get_rank(), dist.get_world_size()), device


def leave(team: Team) -> None:
    """Ends the processes' connections."""
    if team.kind != NONE:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may lie in pieces, put together; all processes must ask for it at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape, on its device and in pieces where it is."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _shard(objective: Objective, size: int) -> None:
    """FSDP2 over the halves of every block; embedding and last norm stay together until the way back is done."""
    model = objective.model
    if not isinstance(model, Hope):
        raise InvalidRequest("a baseline is trained with --parallel none or ddp, not fsdp", param="parallel")
    if model.config.decay_towards != "initial":
        raise InvalidRequest("memories that decay towards zero are trained with ddp, not fsdp", param="parallel")
    with torch.no_grad():
        objective.blank = model.initial_memory(1, levels=False)
    # It warns of views that might be changed in place; here a memory is a value and nothing is.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(model.embedding.weight.device.type, (size,))
    for block in model.blocks:
        assert isinstance(block, HopeBlock)
        fully_shard(block.titans if hasattr(block, "titans") else block.attention, mesh=mesh)
        # A block is not called: its mixer is, and its chain.
        fully_shard(block, mesh=mesh)
        register_fsdp_forward_method(block, "chain")
    fully_shard(objective, mesh=mesh)
    register_fsdp_forward_method(objective, "guess")

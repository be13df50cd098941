"""A training step's loss and gradients as one CUDA graph: a step of a small model is thousands of small kernels, and a
GPU that is told to start each of them waits most of the time.

Knows the objective and the shapes of its rows; no optimizer and no data.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import TITANS
from engine.errors import InvalidRequest
from engine.model.hope import POSITION, Hope, Memory
from engine.training.objective import Objective

# Passes before the capture: compiled code is made in the first, and libraries get the memory that they keep.
WARM_UPS = 3

Inputs = tuple[Tensor, Tensor, Tensor]


@dataclass
class _Graph:
    """One captured step: what to write into, what comes out, and where the gradients lie."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    memory: Memory
    loss: Tensor
    after: Memory
    gradients: dict[str, Tensor]


class CapturedStep:
    """Loss and gradients of batches of one shape after another: a graph for rows that begin, one for rows that go on.

    Args:
        objective: of a Hope on a GPU; its parameters' `grad` are this object's from the first call on, and are
            written anew by each call: they are not to be set to None between.

    Raises:
        InvalidRequest: the model is no Hope with Titans on a GPU.
    """

    def __init__(self, objective: Objective) -> None:
        model = objective.model
        on_gpu = objective.model.embedding.weight.is_cuda
        if not isinstance(model, Hope) or model.config.mixer != TITANS or not on_gpu:
            raise InvalidRequest("only a Hope with Titans on --device cuda can be captured", param="capture")
        self._objective, self._chunk = objective, model.config.chunk_projections
        self._graphs: dict[bool, _Graph] = {}
        self._shape = torch.Size()
        # Shared: only one graph runs at a time, and what comes out of it is used before the next.
        self._pool = torch.cuda.graph_pool_handle()
        # What the rows of the last call remember; their position is counted from where they began.
        self.after: Memory = {}

    def __call__(self, tokens_BT: Tensor, target_BT: Tensor, weight_BT: Tensor, memory: Memory | None) -> Tensor:
        """Sum of weighted next-token losses; the gradients are in the parameters' `grad`, the memory in `after`.

        Args:
            weight_BT: 0 where a target carries no loss.
            memory: what the rows begin with; None where they have read nothing.

        Raises:
            InvalidRequest: the rows end within a chunk: what goes on from there would be another step.
        """
        if tokens_BT.shape != self._shape:
            if tokens_BT.shape[1] % self._chunk:
                raise InvalidRequest(f"captured rows are whole chunks of {self._chunk} tokens", param="capture")
            self._graphs.clear()
            self._shape = tokens_BT.shape
        given = (tokens_BT, target_BT, weight_BT)
        goes_on = memory is not None
        if goes_on not in self._graphs:
            self._graphs[goes_on] = self._captured(given, memory)
        chosen = self._graphs[goes_on]
        for inside, value in zip(chosen.inputs, given, strict=True):
            inside.copy_(value)
        for name, value in (memory or {}).items():
            chosen.memory[name].copy_(value)
        chosen.graph.replay()
        for name, parameter in self._objective.named_parameters():
            parameter.grad = chosen.gradients.get(name)
        self.after = {name: value.clone() for name, value in chosen.after.items()}
        return chosen.loss

    def _captured(self, given: Inputs, memory: Memory | None) -> _Graph:
        inputs = (given[0].clone(), given[1].clone(), given[2].clone())
        inside = {name: value.clone() for name, value in (memory or {}).items()}
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._objective.zero_grad(set_to_none=True)
                loss, after = self._run(inputs, inside)
                loss.backward()  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().wait_stream(beside)
        # Gradients are to be made within the graph.
        self._objective.zero_grad(set_to_none=True)
        del loss, after
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss, after = self._run(inputs, inside)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = {
            name: parameter.grad for name, parameter in self._objective.named_parameters() if parameter.grad is not None
        }
        kept = {name: value.detach() for name, value in after.items()}
        return _Graph(graph, inputs, inside, loss.detach(), kept, gradients)

    def _run(self, inputs: Inputs, inside: Memory) -> tuple[Tensor, Memory]:
        tokens_BT, target_BT, weight_BT = inputs
        rows = tokens_BT.shape[0]
        memory = dict(inside) if inside else self._objective.initial_memory(rows)
        for name, value in memory.items():
            # As in every later chunk: what is compiled for those then serves the first one too.
            if name.endswith((".w1", ".w2")) and not value.requires_grad:
                memory[name] = value.detach().requires_grad_()
        # Where chunks end is read on the CPU; rows of whole chunks are cut alike, wherever they begin.
        memory[POSITION] = torch.zeros(rows, dtype=torch.int64)
        every = torch.arange(tokens_BT.numel(), device=tokens_BT.device)
        summed, after = self._objective(tokens_BT, target_BT, weight_BT, every, memory)
        return summed, after

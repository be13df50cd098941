"""A captured step is the step it was captured from; what cannot be captured is refused. Needs a GPU for the first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.errors import InvalidRequest
from engine.model.hope import POSITION, Hope, Memory
from engine.training.captured import CapturedStep
from engine.training.command import run_training
from engine.training.objective import Objective
from engine.training.segments import compile_segments
from tests.tiny import distance, tiny_model

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
Rows = tuple[Tensor, Tensor, Tensor]


def some_rows(model: Hope, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 4 * model.config.chunk_projections)
    tokens, target = (torch.randint(8, model.config.vocab_size, shape, generator=generator).cuda() for _ in range(2))
    return tokens, target, torch.rand(shape, generator=generator).cuda()


def plain_step(objective: Objective, rows: Rows, memory: Memory | None) -> tuple[Tensor, dict[str, Tensor], Memory]:
    objective.zero_grad(set_to_none=True)
    every = torch.arange(rows[0].numel(), device="cuda")
    loss, after = objective(*rows, every, memory)
    loss.backward()
    gradients = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}
    return loss.detach(), gradients, {name: value.detach() for name, value in after.items()}


@needs_gpu
def test_a_captured_step_is_the_plain_one() -> None:
    model = tiny_model().cuda()
    compile_segments(model)
    objective = Objective(model)
    captured = CapturedStep(objective)
    memory: Memory | None = None
    # New rows of either kind, and the weights of another step: a graph holds none of them.
    for seed in range(4):
        rows = some_rows(model, seed)
        loss, gradients, after = plain_step(objective, rows, memory)
        assert float(captured(*rows, memory)) == pytest.approx(float(loss), rel=1e-4)
        for name, parameter in objective.named_parameters():
            assert (parameter.grad is None) == (name not in gradients)
            if parameter.grad is not None:
                assert distance(gradients[name], parameter.grad) < 1e-3, name
        for name, value in captured.after.items():
            # A captured step counts its position from where its rows began.
            assert name == POSITION or torch.allclose(value, after[name], rtol=1e-3, atol=1e-3), name
        memory = captured.after if seed else None
        with torch.no_grad():
            model.embedding.weight.mul_(1.01)


@needs_gpu
def test_rows_end_with_a_chunk() -> None:
    model = tiny_model().cuda()
    tokens, target, weight = (part[:, :-1] for part in some_rows(model, 0))
    with pytest.raises(InvalidRequest, match="whole chunks"):
        CapturedStep(Objective(model))(tokens, target, weight, None)


def test_without_a_gpu_nothing_is_captured() -> None:
    with pytest.raises(InvalidRequest, match="--device cuda"):
        CapturedStep(Objective(tiny_model()))


@pytest.mark.parametrize("flags", [["--capture"], ["--capture", "--device", "cuda", "--no-compile"]])
def test_the_command_says_what_a_capture_needs(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_training(flags)
    assert "--device cuda and --compile" in capsys.readouterr().err

"""One model on one task: trained for so many steps, its learning rate chosen on validation rows, then tested.

The same for every contestant: AdamW, linear warm-up, linear decay to zero, gradients clipped at 1. Knows tasks and
models by their interface only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.evaluation.examples import Examples, Mark, Task, mark

# How a trained model is measured: conditions and their values.
Measure = Callable[[nn.Module, Task, int], Iterator[tuple[str, float]]]
# What a step of training minimises.
Loss = Callable[[nn.Module, Examples], Tensor]


@dataclass(frozen=True)
class FitPlan:
    """How a contestant is trained.

    Attributes:
        steps: optimizer steps.
        rates: learning rates tried with the first seed; the best by validation loss serves all seeds.
        warmup: share of the steps in which the rate rises.
    """

    steps: int
    rates: tuple[float, ...] = (1e-3, 4e-3)
    warmup: float = 0.1
    weight_decay: float = 0.05
    clip: float = 1.0


@dataclass(frozen=True)
class Fitted:
    """A trained model, its validation mark, the seconds and tokens it took."""

    model: nn.Module
    validation: Mark
    seconds: float
    num_tokens: int


def fit(
    make: Callable[[], nn.Module],
    task: Task,
    plan: FitPlan,
    rate: float,
    seed: int,
    tick: Callable[[], object] = lambda: None,
    loss_of: Loss | None = None,
) -> Fitted:
    """Trains a fresh model on a task; the seed sets its initial weights and its data.

    Args:
        tick: called every step.
        loss_of: what is minimised; by default the mean `loss` of the answers' tokens, read without in-context steps.
    """
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
    )
    started, num_tokens = time.monotonic(), 0
    model.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, plan)
        examples = task.training(seed, step)
        optimizer.zero_grad(set_to_none=True)
        (loss_of or loss)(model, examples).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        if bool(torch.isfinite(norm)):
            optimizer.step()
        num_tokens += examples.tokens_BT.numel()
        tick()
    seconds = time.monotonic() - started
    model.eval()
    return Fitted(model, mark(model, task.validation(seed)), seconds, num_tokens)  # type: ignore[arg-type]


def schedule(step: int, plan: FitPlan) -> float:
    """Share of the peak learning rate at a step."""
    rise = (step + 1) / max(1.0, plan.warmup * plan.steps)
    fall = (plan.steps - step) / max(1.0, (1 - plan.warmup) * plan.steps)
    return min(1.0, rise, fall)


def loss(model: nn.Module, examples: Examples) -> Tensor:
    """Mean loss in nats over the tokens of answers."""
    memory = model.initial_memory(examples.tokens_BT.shape[0], levels=False)  # type: ignore[operator]
    x_BTD, _ = model.hidden(examples.tokens_BT, memory)  # type: ignore[operator]
    counts = examples.counts_BT
    logits: Tensor = model.logits(x_BTD[counts])  # type: ignore[operator]
    return functional.cross_entropy(logits, examples.target_BT[counts])


def accuracies(model: nn.Module, task: Task, seed: int) -> Iterator[tuple[str, float]]:
    """Share of right answers under every condition of a task; a condition may come in several parts."""
    found: dict[str, list[Mark]] = {}
    for condition, examples in task.tests(seed):
        found.setdefault(condition, []).append(mark(model, examples))  # type: ignore[arg-type]
    for condition, marks in found.items():
        yield condition, sum(m.accuracy * m.num_answers for m in marks) / sum(m.num_answers for m in marks)


def best_rate(validations: Sequence[tuple[float, float]]) -> float:
    """The learning rate, of pairs (rate, validation loss), with the lowest loss that is a number."""
    return min(validations, key=lambda pair: pair[1] if pair[1] == pair[1] else float("inf"))[0]

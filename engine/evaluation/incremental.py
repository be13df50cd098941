"""A class-incremental stream learned in two ways: read into a memory, or trained into weights; then marked alike.

After every task all classes so far are asked, each query on its own and with nothing revealed: a memory is a value,
so each query is read from a copy. An answer is the likeliest of the labels shown so far. Knows models by interface.

Shapes: B rows, T tokens, L labels.
"""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.evaluation.tasks.intents import Labelled, Stage
from engine.model.hope import Hope, Memory
from engine.model.learning import Lesson, learn
from engine.tokenizer import ASSISTANT, PAD
from engine.training.elastic import Elastic, consolidate

# matrix[k][j]: share of right answers to the queries of task j after task k; j <= k.
Matrix = list[list[float]]
ROWS = 64


@dataclass(frozen=True)
class WeightsPlan:
    """How a stream is learned by weights: AdamW from the same trained model, task after task.

    Attributes:
        steps: optimizer steps of one task.
        batch: utterances of a step, drawn from what is learned from.
        rehearse: learn from the utterances of all tasks so far (joint training: the upper bound).
        strength: of the elastic penalty; 0 trains without.
    """

    steps: int = 20
    rate: float = 1e-3
    batch: int = 16
    rehearse: bool = False
    strength: float = 0.0


def in_memory(model: nn.Module, stages: Sequence[Stage], level_rates: dict[str, float] | None = None) -> Matrix:
    """Reads the stream and answers; no weight changes.

    Args:
        level_rates: of a Hope, level -> factor on its learning rate: these CMS levels take a step on every task's
            labels when it has been read, as a server's `cms.fast` does at the end of a turn.
    """
    reader: Any = model
    memory = reader.initial_memory(1, levels=bool(level_rates))
    matrix = []
    for number, stage in enumerate(stages):
        before = memory
        with torch.no_grad():
            _, memory = reader.hidden(torch.tensor([stage.text()]), before)
        for level, rate in (level_rates or {}).items():
            assert isinstance(model, Hope)
            memory, _ = learn(model, level, before, memory, _lesson(stage), rate)
        matrix.append(_marks(model, memory, stages[: number + 1]))
    return matrix


def in_weights(model: nn.Module, stages: Sequence[Stage], plan: WeightsPlan, seed: int) -> Matrix:
    """Trains a copy of the model on each task in turn; utterances stand alone and nothing else is read."""
    learner = copy.deepcopy(model).train()
    spring: Elastic | None = None
    matrix = []
    for number, stage in enumerate(stages):
        so_far = stages[: number + 1]
        labels = _labels(so_far)
        source = [one for past in (so_far if plan.rehearse else [stage]) for one in past.shown]
        _train(learner, source, labels, plan, spring, random.Random(f"{seed} {number}"))
        if plan.strength:
            spring = consolidate(spring, learner, _single_losses(learner, stage.shown, labels))
        learner.eval()
        matrix.append(_marks(learner, _fresh(learner, 1), so_far))
        learner.train()
    return matrix


def nearest_centroid(stages: Sequence[Stage]) -> Matrix:
    """The answers of no model at all: the class whose shown utterances share most rare tokens with the query."""
    bags: dict[int, Counter[int]] = {}
    matrix: Matrix = []
    for number, stage in enumerate(stages):
        for utterance, label in stage.shown:
            bags.setdefault(label, Counter()).update(set(utterance))
        classes_with = Counter(token for bag in bags.values() for token in bag)
        rarity = {token: math.log(1 + len(bags) / count) for token, count in classes_with.items()}
        length = {label: math.sqrt(sum((n * rarity[t]) ** 2 for t, n in bag.items())) for label, bag in bags.items()}
        rows = []
        for past in stages[: number + 1]:
            right = 0
            for utterance, label in past.asked:
                known = [token for token in set(utterance) if token in rarity]
                score = {one: sum(bag[t] * rarity[t] ** 2 for t in known) / length[one] for one, bag in bags.items()}
                right += max(score, key=lambda one: score[one]) == label
            rows.append(right / len(past.asked))
        matrix.append(rows)
    return matrix


def conditions(matrix: Matrix) -> dict[str, float]:
    """Accuracy on all classes so far after the first, the middle and the last task, and forgetting.

    Tasks are of one size, so accuracy is the mean of theirs. Forgetting is the mean over tasks but the last of what
    was right after the task less what is right at the end.
    """
    last = len(matrix)
    found = {f"after {k}": sum(matrix[k - 1]) / k for k in dict.fromkeys((1, (last + 1) // 2, last))}
    if last > 1:
        found["forgetting"] = sum(matrix[j][j] - matrix[-1][j] for j in range(last - 1)) / (last - 1)
    return found


def _labels(stages: Sequence[Stage]) -> list[int]:
    return sorted({label for stage in stages for label in stage.labels})


def _marks(model: nn.Module, memory: Memory, stages: Sequence[Stage]) -> list[float]:
    """Share of right answers to the queries of every task, from one row's memory."""
    labels = _labels(stages)
    return [_mark(model, memory, stage.asked, labels) for stage in stages]


@torch.no_grad()
def _mark(model: nn.Module, memory: Memory, asked: Sequence[Labelled], labels: list[int]) -> float:
    right = 0
    for start in range(0, len(asked), ROWS):
        own = asked[start : start + ROWS]
        copies = {name: value.expand(len(own), *value.shape[1:]) for name, value in memory.items()}
        guess_B = _scores(model, copies, own, labels).argmax(1)
        right += sum(labels[int(g)] == label for g, (_, label) in zip(guess_B, own, strict=True))
    return right / len(asked)


def _scores(model: Any, memory: Memory, own: Sequence[Labelled], labels: list[int]) -> Tensor:
    """Logits of the labels after every utterance [B,L]."""
    rows = [[*utterance, ASSISTANT] for utterance, _ in own]
    lengths_B = torch.tensor([len(row) for row in rows])
    width = int(lengths_B.max())
    tokens_BT = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    x_BTD, _ = model.hidden(tokens_BT, memory, lengths_B)
    logits: Tensor = model.logits(x_BTD[torch.arange(len(rows)), lengths_B - 1])
    return logits[:, labels]


def _fresh(model: Any, rows: int) -> Memory:
    memory: Memory = model.initial_memory(rows, levels=False)
    return memory


def _train(
    model: nn.Module,
    source: list[Labelled],
    labels: list[int],
    plan: WeightsPlan,
    spring: Elastic | None,
    rng: random.Random,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in range(plan.steps):
        loss = _loss(model, rng.sample(source, min(plan.batch, len(source))), labels)
        if spring is not None:
            loss = loss + spring.penalty(model, plan.strength)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _loss(model: nn.Module, own: Sequence[Labelled], labels: list[int]) -> Tensor:
    """Mean negative log-likelihood in nats of the labels, among those so far."""
    scores_BL = _scores(model, _fresh(model, len(own)), own, labels)
    return functional.cross_entropy(scores_BL, torch.tensor([labels.index(label) for _, label in own]))


def _single_losses(model: nn.Module, shown: Sequence[Labelled], labels: list[int]) -> Iterator[Tensor]:
    return (_loss(model, [one], labels) for one in shown)


def _lesson(stage: Stage) -> Lesson:
    """What is to be learned of a task: the labels it showed."""
    tokens = stage.text()
    is_label = torch.isin(torch.tensor(tokens), torch.tensor(stage.labels))
    return Lesson(torch.tensor([tokens]), torch.tensor([len(tokens)]), is_label.float().unsqueeze(0))

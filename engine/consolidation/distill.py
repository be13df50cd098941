"""Distillation: a slower level learns to answer as a model did that had just read what was told.

A step is the mean of what its rows ask for, each row's gradient drawn to the median length and each session bounded in
its share, so that neither a row nor a session decides it. Rehearsal and calm rows pull back what must stay; or, as an
alternative to them, a spring on every weight that matters to it (elastic weight consolidation).

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.config import LevelConfig
from engine.consolidation.dreams import Example, as_rows, sure_of
from engine.consolidation.policy import GenerationPolicy
from engine.model.continuum import descend, step_state, weight_names
from engine.model.hope import Hope, Memory
from engine.model.portable import level_of
from engine.model.shared import with_shared

# Rows of one batch are at most so many times as long as the shortest.
LIKE_LENGTHS = 2.0


@dataclass(frozen=True)
class Material:
    """What a candidate is made of: dreams of sessions, dreams of earlier generations, and what is to stay as it is.

    `calm` holds that by kind; of a step's calm rows each kind that there is has a part, and one named twice has two.
    """

    dreams: Sequence[Example]
    rehearsal: Sequence[Example]
    calm: Sequence[Sequence[Example]]


@dataclass(frozen=True)
class Spring:
    """A spring on every weight (Kirkpatrick et al., PNAS 2017, eq. 3): where it holds it, and how much that matters.

    Importance is the squared gradient of rows that must stay, over its mean: the strength is that of a mean weight.
    """

    anchor: Memory
    importance: Memory


@dataclass(frozen=True)
class Distilled:
    """One step: what is known after it (batch size 1), the loss in nats, the norm of the step, rows left out."""

    shared: Memory
    loss: float
    update_norm: float
    num_unmoved: int


def draw(material: Material, policy: GenerationPolicy, rng: random.Random) -> tuple[list[Example], list[float]]:
    """The rows of one step and their weights, which add up to 1: sessions first, each in turn, then a dream of it."""
    by_session: dict[str, list[Example]] = {}
    for example in material.dreams:
        by_session.setdefault(example.session, []).append(example)
    names = sorted(by_session)
    num_dreams = round(policy.rows_per_step * policy.dream_share)
    num_rehearsal = round(policy.rows_per_step * policy.rehearsal_share) if material.rehearsal else 0
    # As many from each session that is drawn, however much it said; within a bound where few are left.
    at_most = max(1, round(num_dreams * policy.share_of_session(len(names))))
    told: list[Example] = []
    while len(told) < num_dreams and names:
        for name in rng.sample(names, len(names)):
            if sum(example.session == name for example in told) < at_most and len(told) < num_dreams:
                told.append(rng.choice(by_session[name]))
        if all(sum(example.session == name for example in told) >= at_most for name in names):
            break
    others = [rng.choice(material.rehearsal) for _ in range(num_rehearsal)]
    kinds = [kind for kind in material.calm if kind]
    if kinds:
        num_calm = policy.rows_per_step - num_dreams - num_rehearsal
        others += [rng.choice(rng.choice(kinds)) for _ in range(num_calm)]
    chosen = [*told, *others]
    return chosen, [1.0 / len(chosen)] * len(chosen)


def step(
    model: Hope,
    level: LevelConfig,
    shared: Memory,
    chosen: Sequence[Example],
    weights: Sequence[float],
    policy: GenerationPolicy,
    rate: float,
    beside: Memory | None = None,
    spring: Spring | None = None,
    home: Memory | None = None,
) -> Distilled:
    """One step of a level towards the examples' answers.

    Args:
        shared: what the level knows, and its optimizer's state (batch size 1); it is not changed.
        rate: factor on the learning rate.
        beside: what other levels know (batch size 1); by default nothing.
        spring: what holds the weights back, as strongly as the policy says.
        home: the session's own memory without this level (batch size 1), for the rows that are asked at home.
    """
    level = replace(
        level,
        optimizer=policy.optimizer,
        learning_rate=policy.learning_rate,
        max_update_norm=policy.max_update_norm,
        max_drift=policy.most_drift,
    )
    names = weight_names(shared, level.name)
    loss_B, gradients = _asked_for(model, names, shared, chosen, beside, home)
    weight_B = torch.tensor(weights)
    scale_B, num_unmoved = _scales(gradients, weight_B)
    gradient = {
        name: (torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0) * scale_B[:, None, None]).sum(0, keepdim=True)
        for name, value in zip(names, gradients, strict=True)
    }
    if spring is not None:
        for name in names:
            pulled = spring.importance[name] * (shared[name] - spring.anchor[name])
            gradient[name] = gradient[name] + policy.elastic_strength * pulled
    with torch.no_grad():
        moved, norm_B = descend(
            {name: shared[name] for name in names}, gradient, level, torch.tensor([rate]), step_state(shared, names)
        )
    updates = f"{level.name}.updates"
    after = {**shared, **moved, updates: shared[updates] + (norm_B > 0).long()}
    return Distilled(after, float((loss_B * weight_B).sum()), float(norm_B[0]), num_unmoved)


def spring_on(
    model: Hope, level: LevelConfig, shared: Memory, examples: Sequence[Example], beside: Memory | None = None
) -> Spring:
    """A spring that holds a level where it is, as far as that matters to the replies of these examples (at least one).

    Importance is the empirical Fisher information's diagonal: the mean over examples of the squared gradient of their
    replies' likelihood.
    """
    names = weight_names(shared, level.name)
    squares = {name: torch.zeros_like(shared[name]) for name in names}
    for example in examples:
        replied = example.dream.tokens[example.dream.reply_at + 1 :]
        said = Example(example.dream, sure_of(replied, example.answer_NV.shape[1]))
        _, gradients = _asked_for(model, names, shared, [said], beside)
        for name, value in zip(names, gradients, strict=True):
            squares[name] += value.square()
    mean = torch.stack([value.mean() for value in squares.values()]).mean().clamp_min(1e-30)
    return Spring(
        {name: shared[name].clone() for name in names}, {name: square / mean for name, square in squares.items()}
    )


def _asked_for(
    model: Hope,
    names: Sequence[str],
    shared: Memory,
    chosen: Sequence[Example],
    beside: Memory | None,
    home: Memory | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """How far each row is from its answer [B], in nats a token, and its own gradient for every weight [B,…]."""
    order: list[int] = []
    losses: list[Tensor] = []
    gradients: list[tuple[Tensor, ...]] = []
    for part in _alike(chosen):
        rows = [chosen[at] for at in part]
        others = {**(beside or {}), **(home or {})} if rows[0].at_home else beside
        loss_B, own = _part_asked_for(model, names, shared, rows, others)
        order += part
        losses.append(loss_B)
        gradients.append(own)
    back = torch.tensor(order).argsort()
    return torch.cat(losses)[back], tuple(torch.cat(own)[back] for own in zip(*gradients, strict=True))


def _alike(chosen: Sequence[Example]) -> list[list[int]]:
    """The rows' places, in parts asked of one memory and of like lengths: a long row would pad all others."""
    parts: list[list[int]] = []
    for at in sorted(range(len(chosen)), key=lambda at: (chosen[at].at_home, len(chosen[at].dream.tokens))):
        first = chosen[parts[-1][0]] if parts else None
        if (
            first is None
            or first.at_home != chosen[at].at_home
            or len(chosen[at].dream.tokens) > len(first.dream.tokens) * LIKE_LENGTHS
        ):
            parts.append([])
        parts[-1].append(at)
    return parts


def _part_asked_for(
    model: Hope, names: Sequence[str], shared: Memory, chosen: Sequence[Example], beside: Memory | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    rows = as_rows([example.dream for example in chosen])
    count = len(chosen)
    memory = with_shared(with_shared(model.initial_memory(count), beside or {}), shared)
    inputs = {name: memory[name].detach().clone().requires_grad_() for name in names}
    with torch.enable_grad():
        hidden_BTD, _ = model.hidden(rows.tokens_BT, {**memory, **inputs}, rows.lengths_B)
        places = rows.counts_BT > 0
        own_NV = torch.log_softmax(model.logits(hidden_BTD[places]), -1)
        answers_NV = torch.cat([example.answer_NV for example in chosen]).float()
        apart_N = (answers_NV.exp() * (answers_NV - own_NV)).sum(-1)
        lengths_B = rows.counts_BT.sum(1)
        loss_B = torch.zeros(count).index_add(0, places.nonzero()[:, 0], apart_N) / lengths_B
        gradients = torch.autograd.grad(loss_B.sum(), list(inputs.values()))
    return loss_B.detach(), gradients


def _scales(gradients: Sequence[Tensor], weight_B: Tensor) -> tuple[Tensor, int]:
    """What each row's gradient is multiplied by: its weight, and what draws it to the median length."""
    norm_B = torch.stack([value.square().sum((1, 2)) for value in gradients]).sum(0).sqrt()
    finite_B = torch.isfinite(norm_B)
    if not bool(finite_B.any()):
        return torch.zeros_like(weight_B), len(weight_B)
    median = norm_B[finite_B].median()
    drawn_B = (median / norm_B.clamp_min(1e-12)).clamp_max(1.0)
    return torch.where(finite_B, weight_B * drawn_B, 0.0), int((~finite_B).sum())


def with_step_state(model: Hope, level: LevelConfig, shared: Mapping[str, Tensor], policy: GenerationPolicy) -> Memory:
    """What a generation knows, with the state that the policy's optimizer begins with."""
    begun = model.initial_level(replace(level, optimizer=policy.optimizer), 1)
    return {**begun, **{name: value for name, value in shared.items() if level_of(name) == level.name}}


def without_step_state(level: LevelConfig, shared: Memory) -> Memory:
    """What a generation keeps: its differences and the count of its updates."""
    kept = {*weight_names(shared, level.name), f"{level.name}.updates"}
    return {name: value for name, value in shared.items() if name in kept}

"""CMS levels that learn inside a text while the model itself is trained (HOPE.md §1(g), eq. 71; §4.2, ii).

A text is read in segments of the fastest level's clock. At the end of a level's period its differences take the
next-token step, row by row; later segments see it, so the blocks' initial states are learned for what they become,
and so are the clocks' rates. First order: a step's gradient is a constant of the outer one. Knows no optimizer.

Shapes: B rows, T tokens, N tokens of a segment, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from engine.config import LevelConfig
from engine.errors import InvalidRequest
from engine.model.continuum import descend, restart_faster, step_state, weight_names
from engine.model.hope import Hope, Memory
from engine.model.learning import emphasis

LossOf = Callable[[Tensor, Tensor], Tensor]


def run_in_context(
    model: Hope,
    tokens_BT: Tensor,
    memory: Memory,
    loss_of: LossOf | None = None,
    *,
    rates: Mapping[str, Tensor] | None = None,
    counts_BT: Tensor | None = None,
    surprise_weighs: bool = False,
) -> tuple[Tensor, Memory]:
    """Reads a text with levels that learn as it passes; clocks start with the call.

    A level learns from the pairs of tokens inside segments: what the last token of a segment predicts is not read
    yet when the segment ends. That pair is in the losses all the same.

    Args:
        tokens_BT: token ids, T at least 2; no row is padded.
        memory: the rows' memory; it is not changed. The levels whose differences it holds learn, no others.
        loss_of: (normed residual stream [B,N,D], targets [B,N]) -> losses [B,N]; by default the negative
            log-likelihood in nats.
        rates: level name -> log of its learning rate (a scalar), in place of `LevelConfig.learning_rate`; it stays in
            the graph, so that later losses give it a gradient.
        counts_BT: 1 where a token is to be learned from, 0 where it is context only; None means all of them.
        surprise_weighs: weigh tokens by their surprise, as `learning.learn` does.

    Returns:
        Losses of tokens 1 to T-1 [B,T-1], and the memory after the last token and the last step. Where gradients
        are off, both are without a graph.

    Raises:
        InvalidRequest: a rate's level does not learn here, or a clock is no multiple of the fastest.
    """
    loss_of = loss_of or next_token_loss(model)
    lessons = [_Gathered(level, _names(memory, level)) for level in model.config.levels if _names(memory, level)]
    _check(lessons, rates or {})
    counts_BT = torch.ones_like(tokens_BT) if counts_BT is None else counts_BT
    num_tokens, is_outer = tokens_BT.shape[1], torch.is_grad_enabled()
    step = min((lesson.level.period_tokens for lesson in lessons), default=num_tokens)
    losses = []
    for start in range(0, num_tokens, step):
        end = min(start + step, num_tokens)
        with torch.enable_grad():
            local = {name: _own_node(memory[name]) for lesson in lessons for name in lesson.names}
            x_BND, after = model.hidden(tokens_BT[:, start:end], {**memory, **local})
            target_BN = tokens_BT[:, start + 1 : end + 1]
            losses_BN = loss_of(x_BND[:, : target_BN.shape[1]], target_BN)
            if lessons and end - start == step and step > 1:
                own_BN, counts_BN = losses_BN[:, : step - 1], counts_BT[:, start + 1 : end].to(losses_BN.dtype)
                lessons = _gather(lessons, local, own_BN, counts_BN, surprise_weighs, is_outer)
        memory = {**after, **{name: memory[name] for name in local}}
        if not is_outer:
            losses_BN, memory = losses_BN.detach(), {name: value.detach() for name, value in memory.items()}
        losses.append(losses_BN)
        memory, lessons = _take_steps(model, memory, lessons, end, rates or {})
    return torch.cat(losses, 1), memory


def next_token_loss(model: Hope) -> LossOf:
    """Negative log-likelihood of the targets in nats [B,N]."""

    def loss_of(x_BND: Tensor, target_BN: Tensor) -> Tensor:
        logits = model.logits(x_BND).flatten(0, 1)
        return functional.cross_entropy(logits, target_BN.flatten(), reduction="none").view_as(target_BN)

    return loss_of


@dataclass(frozen=True)
class _Gathered:
    """What a level has gathered since its last step: sums over tokens of its gradients, and the weight they have."""

    level: LevelConfig
    names: tuple[str, ...]
    gradients: tuple[Tensor, ...] = ()
    weight_B: Tensor | None = None


def _names(memory: Memory, level: LevelConfig) -> tuple[str, ...]:
    return tuple(weight_names(memory, level.name))


def _check(lessons: list[_Gathered], rates: Mapping[str, Tensor]) -> None:
    learning = {lesson.level.name: lesson.level.period_tokens for lesson in lessons}
    for name in rates:
        if name not in learning:
            held = ", ".join(learning) or "none"
            raise InvalidRequest(f"'{name}' does not learn from this memory; what does: {held}", param="rates")
    for name, period in learning.items():
        fastest = min(learning.values())
        if period % fastest:
            raise InvalidRequest(f"period_tokens {period} of '{name}' must be a multiple of the fastest, {fastest}")


def _own_node(difference: Tensor) -> Tensor:
    """The difference as this segment alone reads it: a gradient to it is that of this segment's losses."""
    return difference.clone() if difference.requires_grad else difference.detach().requires_grad_()


def _gather(
    lessons: list[_Gathered],
    local: Memory,
    losses_BN: Tensor,
    counts_BN: Tensor,
    surprise_weighs: bool,
    is_outer: bool,
) -> list[_Gathered]:
    """What was gathered with a segment's gradients added; `is_outer` keeps its graph for the outer loss."""
    weights_BN = counts_BN * emphasis(losses_BN.detach(), counts_BN) if surprise_weighs else counts_BN
    objective, inputs = (losses_BN * weights_BN).sum(), list(local.values())
    found = dict(zip(local, torch.autograd.grad(objective, inputs, retain_graph=is_outer), strict=True))
    gathered = []
    for lesson in lessons:
        new = tuple(found[name].detach() for name in lesson.names)
        weight_B = weights_BN.sum(1)
        if lesson.weight_B is not None:
            new = tuple(old + added for old, added in zip(lesson.gradients, new, strict=True))
            weight_B = lesson.weight_B + weight_B
        gathered.append(replace(lesson, gradients=new, weight_B=weight_B))
    return gathered


def _take_steps(
    model: Hope, memory: Memory, lessons: list[_Gathered], num_read: int, rates: Mapping[str, Tensor]
) -> tuple[Memory, list[_Gathered]]:
    """The memory after the steps of the levels whose period ends here, fast to slow, and what the others gathered."""
    kept = []
    for lesson in lessons:
        if num_read % lesson.level.period_tokens or lesson.weight_B is None:
            kept.append(lesson)
            continue
        memory = _take_step(model, memory, lesson, lesson.weight_B, rates.get(lesson.level.name))
        kept.append(_Gathered(lesson.level, lesson.names))
    return memory, kept


def _take_step(model: Hope, memory: Memory, lesson: _Gathered, weight_B: Tensor, log_rate: Tensor | None) -> Memory:
    level, name = lesson.level, lesson.level.name
    rate_B = (weight_B > 0).to(weight_B.dtype)
    if log_rate is not None:
        level, rate_B = replace(level, learning_rate=1.0), rate_B * log_rate.exp()
    mean_by = weight_B.clamp_min(1.0)[:, None, None]
    gradients = {key: total / mean_by for key, total in zip(lesson.names, lesson.gradients, strict=True)}
    moved, norm_B = descend(
        {key: memory[key] for key in lesson.names}, gradients, level, rate_B, step_state(memory, lesson.names)
    )
    updates, has_moved_B = f"{name}.updates", norm_B > 0
    memory = {**memory, **moved, updates: memory[updates] + has_moved_B.long()}
    return restart_faster(memory, name, model.config, has_moved_B) if model.config.chain == "nested" else memory

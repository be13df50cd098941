"""Levels that learn inside a text: the naive loop, the plain forward, the turn's lesson, and what has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.config import CMS_FAST, CMS_MEDIUM, LevelConfig
from engine.errors import InvalidRequest
from engine.model.hope import Hope, Memory
from engine.model.in_context import run_in_context
from engine.model.learning import Lesson, learn
from tests.tiny import distance, initial, memory_distance, random_tokens, row_of, same_bits, tiny_model

TOLERANCE = 1e-9
# Clocks of 8, 16 and 32 tokens; the slowest step is bounded by its clip, the middle one by its drift.
LEVELS = (
    LevelConfig("cms.a", 6, "session", 0.4, period_tokens=8),
    LevelConfig("cms.b", 5, "session", 0.6, max_drift=0.05, period_tokens=16),
    LevelConfig("cms.c", 7, "session", 2.0, max_update_norm=0.02, period_tokens=32),
    LevelConfig("cms.fixed", 9, "training"),
)


def _model(levels: tuple[LevelConfig, ...] = LEVELS, **changes: Any) -> Hope:
    return tiny_model(levels=levels, **changes).double()


def _naive(model: Hope, tokens_1T: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """One row, one segment after another, with backward() on leaves of its own."""
    memory = {name: value.clone() for name, value in memory.items()}
    sums: dict[str, list[tuple[Tensor, int]]] = {}
    losses: list[Tensor] = []
    total, fastest = tokens_1T.shape[1], min(level.period_tokens for level in LEVELS[:3])
    for start in range(0, total, fastest):
        segment = tokens_1T[:, start : start + fastest]
        leaves = {n: v.clone().requires_grad_() for n, v in memory.items() if n.startswith("cms.") and v.dim() == 3}
        logits, after = model(segment, {**memory, **leaves})
        own = [functional.cross_entropy(logits[0, t], segment[0, t + 1]) for t in range(segment.shape[1] - 1)]
        losses += [loss.detach() for loss in own]
        end = start + segment.shape[1]
        if end < total:
            losses.append(functional.cross_entropy(logits[0, -1], tokens_1T[0, end]).detach())
        memory = {n: v.detach() for n, v in after.items() if n not in leaves} | {n: memory[n] for n in leaves}
        if segment.shape[1] < fastest:
            break
        torch.stack(own).sum().backward()  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            sums.setdefault(name, []).append((leaf.grad, len(own)))
        for level in LEVELS[:3]:
            if end % level.period_tokens == 0:
                _naive_step(memory, sums, level)
    return torch.stack(losses), memory


def _naive_step(memory: Memory, sums: dict[str, list[tuple[Tensor, int]]], level: LevelConfig) -> None:
    names = [name for name in sums if name.startswith(f"{level.name}.")]
    gradients = {}
    for name in names:
        parts = sums.pop(name)
        gradients[name] = torch.stack([grad for grad, _ in parts]).sum(0) / sum(count for _, count in parts)
    norm = float(torch.cat([g.flatten() for g in gradients.values()]).norm())
    for name, gradient in gradients.items():
        memory[name] = memory[name] - level.learning_rate * min(1.0, level.max_update_norm / norm) * gradient
    drift = float(torch.cat([memory[name].flatten() for name in names]).norm())
    for name in names:
        memory[name] = memory[name] * min(1.0, level.max_drift / drift)
    memory[f"{level.name}.updates"] += 1


@pytest.mark.parametrize("changes", [{}, {"chain": "independent"}, {"decay_towards": "zero", "momentum": True}])
def test_every_row_is_the_naive_loop(changes: dict[str, Any]) -> None:
    model = _model(**changes)
    tokens, fresh = random_tokens(model, 2, 75), initial(model, 2)
    losses, memory = run_in_context(model, tokens, fresh)
    assert losses.shape == (2, 74)
    for row in range(2):
        expected, expected_memory = _naive(model, tokens[row : row + 1], row_of(fresh, row))
        assert distance(losses[row], expected) <= TOLERANCE
        assert memory_distance(row_of(memory, row), expected_memory) <= TOLERANCE
    assert [memory[f"cms.{level}.updates"].tolist() for level in "abc"] == [[9, 9], [4, 4], [2, 2]]
    # Both bounds bind, or the naive loop would not have tried them.
    drift = torch.cat([memory[f"cms.b.{i}.{part}"].flatten(1) for i in range(2) for part in ("w2", "w1")], 1)
    assert torch.allclose(drift.norm(dim=1), torch.full((2,), 0.05).double())


def _plain_losses(model: Hope, tokens_BT: Tensor) -> Tensor:
    logits, _ = model(tokens_BT, initial(model, tokens_BT.shape[0]))
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
    return losses.view(tokens_BT.shape[0], -1)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("learned", [False, True])
def test_a_rate_of_zero_is_the_plain_forward(rate: float, learned: bool) -> None:
    levels = (LevelConfig("cms.a", 6, "session", 9.0 if learned else rate, period_tokens=8),)
    model = _model(levels)
    tokens = random_tokens(model, 2, 45)
    rates = {"cms.a": torch.tensor(rate, dtype=torch.float64).log()} if learned else None
    losses, _ = run_in_context(model, tokens, initial(model, 2), rates=rates)
    assert (distance(losses, _plain_losses(model, tokens)) <= TOLERANCE) == (rate == 0.0)
    # The first segment has met no step, whatever the rate.
    assert distance(losses[:, :8], _plain_losses(model, tokens)[:, :8]) <= TOLERANCE


def test_without_levels_that_learn_the_text_is_read_at_once() -> None:
    model = _model((LEVELS[3],))
    tokens = random_tokens(model, 2, 45)
    losses, memory = run_in_context(model, tokens, initial(model, 2))
    assert distance(losses, _plain_losses(model, tokens)) <= TOLERANCE
    assert memory["position"].tolist() == [45, 45]


@pytest.mark.parametrize("name", ["cms.a", "cms.b", "cms.c"])
def test_law_5_initial_states_and_clocks_have_a_gradient(name: str) -> None:
    model = _model()
    tokens = random_tokens(model, 2, 45)
    rates = {f"cms.{level}": torch.tensor(-1.0, dtype=torch.float64, requires_grad=True) for level in "abc"}
    losses, _ = run_in_context(model, tokens, initial(model, 2), rates=rates)
    # What comes after every level's first step.
    losses[:, 33:].mean().backward()  # type: ignore[no-untyped-call]
    number = [level.name for level in LEVELS].index(name)
    for index in range(model.config.num_layers):
        for part in ("w2", "w1"):
            gradient = model.get_parameter(f"blocks.{index}.levels.{number}.{part}").grad
            assert gradient is not None
            assert float(gradient.norm()) > 0
    slope = rates[name].grad
    assert slope is not None
    assert abs(float(slope)) > 0


def _one_level(**changes: Any) -> Hope:
    return _model((LevelConfig("cms.a", 6, "session", 0.4, period_tokens=16),), **changes)


def test_a_clock_s_gradient_is_the_slope_of_the_losses_after_its_step() -> None:
    # Over one step nothing is left out by the first order: its own gradient does not depend on the rate.
    model = _one_level()
    tokens = random_tokens(model, 2, 32)
    log_rate = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)

    def loss(at: Tensor) -> Tensor:
        return run_in_context(model, tokens, initial(model, 2), rates={"cms.a": at})[0].mean()

    (gradient,) = torch.autograd.grad(loss(log_rate), log_rate)
    step = 1e-5
    slope = (loss(log_rate.detach() + step) - loss(log_rate.detach() - step)) / (2 * step)
    assert float(gradient) == pytest.approx(float(slope.detach()), rel=1e-6)


def test_a_row_that_learns_nothing_leaves_the_clock_s_gradient_a_number() -> None:
    model = _one_level()
    tokens, counts = random_tokens(model, 2, 48), torch.ones(2, 48)
    counts[1] = 0
    log_rate = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    losses, memory = run_in_context(model, tokens, initial(model, 2), rates={"cms.a": log_rate}, counts_BT=counts)
    (gradient,) = torch.autograd.grad(losses.mean(), log_rate)
    assert bool(torch.isfinite(gradient))
    assert float(gradient) != 0.0
    assert memory["cms.a.updates"].tolist() == [3, 0]
    assert not memory["cms.a.0.w1"][1].any()
    assert distance(losses[1], _plain_losses(model, tokens)[1]) <= TOLERANCE


@pytest.mark.parametrize("surprise_weighs", [True, False])
def test_it_is_what_a_session_learns_between_messages_that_end_where_periods_do(surprise_weighs: bool) -> None:
    # `learn` counts its rate in float32: a half is exact there.
    levels = tuple(LevelConfig(name, 6, "session", 0.5, period_tokens=16) for name in (CMS_FAST, CMS_MEDIUM))
    model = _model(levels)
    tokens = random_tokens(model, 2, 48)
    expected = initial(model, 2)
    for message in torch.split(tokens, 16, 1):
        with torch.no_grad():
            _, after = model(message, expected)
        lesson = Lesson(message, torch.full((2,), 16), torch.ones(2, 16).double())
        for level in (CMS_FAST, CMS_MEDIUM):
            after, _ = learn(model, level, expected, after, lesson)
        expected = after
    _, memory = run_in_context(model, tokens, initial(model, 2), surprise_weighs=surprise_weighs)
    assert (memory_distance(memory, expected) <= TOLERANCE) == surprise_weighs


@pytest.mark.parametrize("chain", ["sequential", "nested"])
def test_nested_levels_start_again_when_a_slower_one_steps(chain: str) -> None:
    model = _model(chain=chain)
    _, memory = run_in_context(model, random_tokens(model, 1, 32), initial(model))
    assert [bool(memory[f"cms.{level}.0.w1"].any()) for level in "abc"] == (
        [True, True, True] if chain == "sequential" else [False, False, True]
    )
    _, memory = run_in_context(model, random_tokens(model, 1, 40), initial(model))
    assert [bool(memory[f"cms.{level}.0.w1"].any()) for level in "abc"] == (
        [True, True, True] if chain == "sequential" else [True, False, True]
    )


def test_law_4_no_loss_depends_on_a_later_token() -> None:
    model = _model()
    tokens = random_tokens(model, 1, 40)
    losses, _ = run_in_context(model, tokens, initial(model))
    for place in (7, 8, 9, 16, 32):
        changed = tokens.clone()
        changed[0, place] = (tokens[0, place] + 1) % model.config.vocab_size
        others, _ = run_in_context(model, changed, initial(model))
        # The loss at place - 1 is that of the token itself.
        assert torch.equal(others[0, : place - 1], losses[0, : place - 1])
        assert not torch.allclose(others[0, place:], losses[0, place:])


def test_where_gradients_are_off_the_same_is_learned_and_no_graph_is_kept() -> None:
    model = _model()
    tokens, fresh = random_tokens(model, 2, 45), initial(model, 2)
    kept = {name: value.clone() for name, value in fresh.items()}
    expected, expected_memory = run_in_context(model, tokens, fresh)
    assert expected.requires_grad
    with torch.no_grad():
        losses, memory = run_in_context(model, tokens, fresh)
    assert not losses.requires_grad
    assert not any(value.requires_grad for value in memory.values())
    assert torch.equal(losses, expected)
    assert same_bits(memory, {name: value.detach() for name, value in expected_memory.items()})
    assert same_bits(fresh, kept)


def test_the_loss_is_the_caller_s_to_choose() -> None:
    model = _one_level()
    tokens = random_tokens(model, 1, 20)
    seen: list[tuple[int, ...]] = []

    def squared(x_BND: Tensor, target_BN: Tensor) -> Tensor:
        seen.append(tuple(target_BN.shape))
        return (x_BND.mean(-1) - target_BN).square()

    losses, memory = run_in_context(model, tokens, initial(model), squared)
    assert seen == [(1, 16), (1, 3)]
    assert losses.shape == (1, 19)
    assert memory_distance(memory, run_in_context(model, tokens, initial(model))[1]) > 1e-3


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda m, t: run_in_context(m, t, initial(m), rates={"cms.z": torch.zeros(())}), r"'cms\.z' does not learn"),
        (lambda m, t: run_in_context(m, t, m.initial_memory(1, levels=False), rates={"cms.a": t}), "does: none"),
    ],
)
def test_a_rate_without_a_level_that_learns_is_refused(run: Callable[[Hope, Tensor], object], said: str) -> None:
    model = _one_level()
    with pytest.raises(InvalidRequest, match=said):
        run(model, random_tokens(model, 1, 8))


def test_clocks_tick_together() -> None:
    levels = tuple(LevelConfig(f"cms.{name}", 6, period_tokens=period) for name, period in (("a", 8), ("b", 12)))
    model = _model(levels)
    with pytest.raises(InvalidRequest, match=r"period_tokens 12 of 'cms\.b' must be a multiple of the fastest, 8"):
        run_in_context(model, random_tokens(model, 1, 8), initial(model))

"""Levels that step by a rule with a state (eq. 71: f of any optimizer): it is in the memory, and only its rows move."""

from __future__ import annotations

import math

import pytest
import torch

from engine.config import LEVEL_OPTIMIZERS, LevelConfig
from engine.errors import InvalidRequest
from engine.model.continuum import LEVEL_RULES, descend, initial_step_state
from tests.tiny import distance

STATEFUL = LEVEL_OPTIMIZERS[1:]
Tensors = dict[str, torch.Tensor]


def _level(optimizer: str) -> LevelConfig:
    return LevelConfig("cms.fast", 5, learning_rate=0.05, max_update_norm=1e9, max_drift=3.0, optimizer=optimizer)


def _random(num_rows: int, scale: float = 1.0) -> Tensors:
    shapes = {"0.w2": (num_rows, 5, 6), "0.w1": (num_rows, 6, 5)}
    return {name: scale * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def _state(level: LevelConfig, values: Tensors) -> Tensors:
    return {key: part for name, value in values.items() for key, part in initial_step_state(level, name, value).items()}


def test_every_optimizer_has_a_rule_and_no_other_is_taken() -> None:
    assert set(LEVEL_RULES) == set(STATEFUL)
    with pytest.raises(InvalidRequest, match="'adagrad'"):
        LevelConfig("cms.fast", 5, optimizer="adagrad")


@pytest.mark.parametrize("optimizer", STATEFUL)
def test_steps_are_the_rules_steps_and_the_state_is_carried(optimizer: str) -> None:
    torch.manual_seed(0)
    level, values = _level(optimizer), _random(2, 0.01)
    rule, state = LEVEL_RULES[optimizer], _state(level, values)
    expected = {name: (value, rule.initial(value)) for name, value in values.items()}
    for _ in range(3):
        gradients = _random(2, 0.01)
        after, norm_B = descend(values, gradients, level, torch.ones(2, dtype=torch.float64), state)
        values, state = {name: after[name] for name in values}, {name: after[name] for name in state}
        moved = torch.zeros(2, dtype=torch.float64)
        for name, (value, held) in expected.items():
            held, change = rule.step(held, gradients[name], 0.05)
            expected[name] = value + change, held
            moved += change.square().sum((1, 2))
            assert distance(values[name], value + change) <= 1e-14
        assert distance(norm_B, moved.sqrt()) <= 1e-14


@pytest.mark.parametrize("optimizer", STATEFUL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_law_6_a_row_that_does_not_learn_keeps_weights_and_state(optimizer: str, bad: float) -> None:
    """A gradient that is no number, or a rate of zero: momentum does not move it either."""
    torch.manual_seed(0)
    level, values = _level(optimizer), _random(2, 0.01)
    rate_B = torch.ones(2, dtype=torch.float64)
    state = _state(level, values)
    for _ in range(2):
        after, _ = descend(values, _random(2), level, rate_B, state)
        values, state = {name: after[name] for name in values}, {name: after[name] for name in state}
    gradients = _random(2)
    if bad == 0.0:
        rate_B[0] = 0.0
    else:
        gradients["0.w2"][0, 1, 1] = bad
    after, norm_B = descend(values, gradients, level, rate_B, state)
    assert norm_B[0] == 0.0
    assert norm_B[1] > 0.0
    assert all(torch.equal(after[name][0], value[0]) for name, value in {**values, **state}.items())
    assert all(not torch.equal(after[name][1], value[1]) for name, value in values.items())
    alone, _ = descend(
        {name: value[1:] for name, value in values.items()},
        {name: value[1:] for name, value in gradients.items()},
        level,
        rate_B[1:],
        {name: value[1:] for name, value in state.items()},
    )
    assert all(distance(after[name][1:], value) <= 1e-14 for name, value in alone.items())


@pytest.mark.parametrize("optimizer", STATEFUL)
def test_law_6_the_level_stays_within_its_bound(optimizer: str) -> None:
    torch.manual_seed(0)
    level, values = _level(optimizer), _random(2, 0.01)
    state = _state(level, values)
    for number in range(30):
        gradients = _random(2, 10.0 ** (number % 9 - 4))
        after, _ = descend(values, gradients, level, torch.full((2,), 50.0, dtype=torch.float64), state)
        values, state = {name: after[name] for name in values}, {name: after[name] for name in state}
    total = sum(value.square().sum((1, 2)) for value in values.values())
    assert isinstance(total, torch.Tensor)
    assert bool((total.sqrt() <= 3.0 + 1e-9).all())
    assert all(bool(torch.isfinite(value).all()) for value in state.values())

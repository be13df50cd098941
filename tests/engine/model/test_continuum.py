"""A CMS block and its one update: the formula, the clip, the bound, and that a bad gradient moves nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import LevelConfig, ModelConfig
from engine.errors import InvalidRequest
from engine.model.continuum import ContinuumBlock, descend, mix, restart_faster
from tests.tiny import distance

WIDTH, HIDDEN = 6, 5
LEVEL = LevelConfig("cms.fast", HIDDEN, "session", learning_rate=0.1, max_update_norm=2.0, max_drift=3.0)
Tensors = dict[str, torch.Tensor]


def _block() -> ContinuumBlock:
    torch.manual_seed(0)
    return ContinuumBlock(WIDTH, LEVEL).double()


def _random(num_rows: int, scale: float = 1.0) -> Tensors:
    shapes = {"w2": (num_rows, HIDDEN, WIDTH), "w1": (num_rows, WIDTH, HIDDEN)}
    return {name: scale * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def _norms(tensors: Tensors) -> torch.Tensor:
    rows = torch.cat([value.flatten(1) for value in tensors.values()], 1)
    return rows.square().sum(1).sqrt()


def _factor(num_rows: int, value: float = 1.0) -> torch.Tensor:
    return torch.full((num_rows,), value, dtype=torch.float64)


def test_a_row_sees_the_initial_state_plus_its_own_difference() -> None:
    block, x = _block(), torch.randn(2, 3, WIDTH, dtype=torch.float64)
    learned = _random(2, 0.3)
    out = block(x, (learned["w2"], learned["w1"]))
    for row in range(2):
        w2, w1 = block.w2 + learned["w2"][row], block.w1 + learned["w1"][row]
        normed = block.norm(x[row])
        hidden = normed @ w2.T
        assert distance(out[row], x[row] + (hidden * hidden.sigmoid()) @ w1.T) <= 1e-12


def test_nothing_learned_is_the_initial_state() -> None:
    block, x = _block(), torch.randn(2, 3, WIDTH, dtype=torch.float64)
    nothing = _random(2, 0.0)
    assert torch.allclose(block(x, (nothing["w2"], nothing["w1"])), block(x, None), atol=1e-15)


def test_levels_side_by_side_are_a_weighted_sum_of_what_each_makes_of_the_same_input() -> None:
    blocks, x = [_block() for _ in range(3)], torch.randn(2, 3, WIDTH, dtype=torch.float64)
    differences = [None, (_random(2, 0.3)["w2"], _random(2, 0.3)["w1"]), None]
    scores = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    shares = scores.exp() / scores.exp().sum()
    expected = x + sum(
        share * (block(x, difference) - x) for share, block, difference in zip(shares, blocks, differences, strict=True)
    )
    assert distance(mix(x, blocks, differences, scores), expected) <= 1e-12


def test_when_a_nested_level_steps_only_faster_ones_start_again() -> None:
    config = ModelConfig(levels=tuple(LevelConfig(f"cms.{name}", 4) for name in ("a", "b", "c")))
    memory = {f"cms.{name}.0.w1": torch.ones(2, 3, 4) for name in "abc"}
    memory |= {"cms.a.updates": torch.tensor([3, 3]), "titans.0.memory.w1": torch.ones(2, 1)}
    after = restart_faster(memory, "cms.b", config)
    assert [bool(after[f"cms.{name}.0.w1"].any()) for name in "abc"] == [False, True, True]
    assert after["cms.a.updates"].tolist() == [3, 3]
    assert torch.equal(after["titans.0.memory.w1"], torch.ones(2, 1))
    assert bool(memory["cms.a.0.w1"].all())
    one = restart_faster(memory, "cms.c", config, torch.tensor([False, True]))
    assert [one["cms.b.0.w1"][row].any().item() for row in range(2)] == [True, False]
    assert restart_faster(memory, "cms.a", config).keys() == memory.keys()
    assert all(torch.equal(value, memory[name]) for name, value in restart_faster(memory, "cms.a", config).items())
    with pytest.raises(InvalidRequest, match=r"cms\.nowhere"):
        restart_faster(memory, "cms.nowhere", config)


def test_a_step_goes_down_the_gradient() -> None:
    before, gradients = _random(3, 0.1), _random(3, 0.1)
    after, norms = descend(before, gradients, LEVEL, _factor(3))
    for name in before:
        assert torch.allclose(after[name], before[name] - LEVEL.learning_rate * gradients[name])
    assert torch.allclose(norms, LEVEL.learning_rate * _norms(gradients))


def test_a_large_gradient_is_clipped_in_its_row_alone() -> None:
    before, gradients = _random(2, 0.0), _random(2, 0.1)
    for value in gradients.values():
        value[0] *= 1000
    after, norms = descend(before, gradients, LEVEL, _factor(2))
    limit = LEVEL.learning_rate * LEVEL.max_update_norm
    assert float(norms[0]) == pytest.approx(limit)
    assert float(_norms(after)[0]) == pytest.approx(limit)
    assert float(norms[1]) == pytest.approx(LEVEL.learning_rate * float(_norms(gradients)[1]))


@given(st.integers(0, 1000), st.floats(0.0, 1e30), st.integers(1, 40))
def test_law_6_the_level_stays_within_its_bound(seed: int, scale: float, steps: int) -> None:
    torch.manual_seed(seed)
    values, gradients = _random(2, 0.0), _random(2, scale)
    for _ in range(steps):
        values, _ = descend(values, gradients, LEVEL, _factor(2, 50.0))
    assert bool((_norms(values) <= LEVEL.max_drift * (1 + 1e-9)).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_law_6_a_gradient_that_is_no_number_moves_nothing_in_its_row(bad: float) -> None:
    before, gradients = _random(2, 0.1), _random(2, 0.1)
    gradients["w1"][0, 1, 2] = bad
    after, norms = descend(before, gradients, LEVEL, _factor(2))
    assert float(norms[0]) == 0.0
    assert float(norms[1]) > 0.0
    for name, value in before.items():
        assert torch.equal(after[name][0], value[0])
        assert not torch.equal(after[name][1], value[1])


def test_a_rate_of_zero_leaves_the_row_as_it_is() -> None:
    before, gradients = _random(2, 0.1), _random(2)
    after, norms = descend(before, gradients, LEVEL, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert all(torch.equal(after[name][0], value[0]) for name, value in before.items())
    assert norms[0] == 0.0
    assert norms[1] > 0.0

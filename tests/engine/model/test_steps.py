"""Every rule against its equation written out in loops, float64; a batch is its rows alone; what descends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.model.orthogonal_steps import M3, Muon, newton_schulz
from engine.model.steps import (
    OBJECTIVES,
    Adam,
    DeepMomentum,
    DeltaMomentum,
    PlainDescent,
    Rule,
    State,
    delta_gradient_descent,
    delta_gradient_descent_token,
)
from tests.tiny import distance

RULES: dict[str, Rule] = {
    "plain": PlainDescent(),
    "adam": Adam(),
    "delta": DeltaMomentum(),
    "delta unit": DeltaMomentum(unit=True),
    "delta preconditioned": DeltaMomentum(precondition=True),
    "deep": DeepMomentum(num_hidden=7),
    "deep printed": DeepMomentum(num_hidden=7, objective="printed"),
    "deep regression": DeepMomentum(num_hidden=7, objective="regression"),
    "muon": Muon(),
    "muon cubic": Muon(nesterov=False, polynomial="cubic"),
    "m3": M3(frequency=3),
    "m3 quotient": M3(frequency=3, target_rms=None),
    "m3 printed": M3(frequency=3, accumulate=True),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _steps(rule: Rule, gradients: Tensor, rate: float | Tensor = 0.1) -> tuple[State, list[Tensor]]:
    """The rule over gradients [steps, ..., F, D]: its last state and every change."""
    state, changes = rule.initial(gradients[0]), []
    for gradient in gradients:
        state, change = rule.step(state, gradient, rate)
        changes.append(change)
    return state, changes


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_dgd_of_one_input_is_its_argmin(seed: int, rate: float, size: float) -> None:
    """Eq. 57 solves eq. 56 whatever the norm of x: the objective's gradient is zero there."""
    weight, x, gradient = _normal(3, 4, seed=seed), size * _normal(4, seed=seed + 1), _normal(3, seed=seed + 2)
    after = delta_gradient_descent_token(weight, x, gradient, rate)
    slope = torch.outer(after @ x + gradient, x) + (after - weight) / rate
    assert float(slope.norm()) <= 1e-9 * (1 + size**2) * (1 + 1 / rate) * float(weight.norm())
    one = delta_gradient_descent(weight, x[None], torch.outer(gradient, x), rate)
    assert distance(one, after) <= 1e-9 * (1 + size**2)


def test_dgd_at_unit_norm_is_as_printed() -> None:
    weight, gradient, rate = _normal(3, 4), _normal(3, seed=1), 0.7
    x = torch.nn.functional.normalize(_normal(4, seed=2), dim=0)
    step, expected = rate / (1 + rate), torch.zeros(3, 4, dtype=torch.float64)
    for f in range(3):
        for d in range(4):
            kept = sum(weight[f, e] * (float(e == d) - step * x[e] * x[d]) for e in range(4))
            expected[f, d] = kept - step * gradient[f] * x[d]
    assert distance(delta_gradient_descent_token(weight, x, gradient, rate), expected) <= 1e-14


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 100.0))
def test_dgd_of_many_inputs_is_the_argmin(seed: int, num_tokens: int, width: int, outputs: int, rate: float) -> None:
    """(W/rate + U^T X)(I/rate + X^T X)^-1, in whichever dimension it is solved."""
    weight, x = _normal(outputs, width, seed=seed), _normal(num_tokens, width, seed=seed + 1)
    gradient_y = _normal(num_tokens, outputs, seed=seed + 2)
    expected = (weight / rate - gradient_y.T @ x) @ torch.linalg.inv(
        torch.eye(width, dtype=torch.float64) / rate + x.T @ x
    )
    found = delta_gradient_descent(weight, x, gradient_y.T @ x, rate)
    assert distance(found, expected) <= 1e-9 * float(1 + rate * x.square().sum()) * float(1 + expected.abs().max())


def test_dgd_without_pull_is_gradient_descent_and_padding_is_nothing() -> None:
    weight, x, gradient = _normal(3, 4), _normal(6, 4, seed=1), _normal(3, 4, seed=2)
    assert distance(delta_gradient_descent(weight, x, gradient, 0.3, pull=0.0), weight - 0.3 * gradient) <= 1e-15
    assert bool(delta_gradient_descent(weight, x, gradient, 0.3, pull=-10.0).isnan().all()), "it has no minimum"
    padded = torch.cat([x, torch.zeros_like(x)])
    assert distance(*(delta_gradient_descent(weight, rows, gradient, 0.3) for rows in (x, padded))) <= 1e-14


@pytest.mark.parametrize("num_tokens", [2, 9])
def test_dgd_of_a_batch_is_row_by_row_and_a_bad_row_spoils_no_other(num_tokens: int) -> None:
    weight, x, gradient = _normal(3, 2, 4), _normal(3, num_tokens, 4, seed=1), _normal(3, 2, 4, seed=2)
    rate, x[1, 0, 0] = torch.tensor([0.1, 0.2, 3.0], dtype=torch.float64), math.nan
    together = delta_gradient_descent(weight, x, gradient, rate)
    assert not bool(torch.isfinite(together[1]).any())
    for row in (0, 2):
        alone = delta_gradient_descent(weight[row], x[row], gradient[row], float(rate[row]))
        assert distance(together[row], alone) <= 1e-14
    one = delta_gradient_descent_token(weight, x[:, 1], gradient[..., 0], rate)
    assert distance(one[2], delta_gradient_descent_token(weight[2], x[2, 1], gradient[2, :, 0], 3.0)) <= 1e-14


def test_adam_is_torchs() -> None:
    gradients = _normal(6, 3, 4)
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer, mine = torch.optim.Adam([weight], lr=0.1), torch.zeros(3, 4, dtype=torch.float64)
    for gradient, change in zip(gradients, _steps(Adam(), gradients)[1], strict=True):
        weight.grad = gradient
        optimizer.step()
        mine += change
    assert distance(mine, weight.detach()) <= 1e-12


@pytest.mark.parametrize(("unit", "scale"), [(False, 0.1), (False, 5.0), (True, 0.1)])
@pytest.mark.parametrize("precondition", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 5)])
def test_delta_momentum_is_equation_48(shape: tuple[int, int], unit: bool, scale: float, precondition: bool) -> None:
    gradients, (num_rows, width) = scale * _normal(4, *shape), shape
    rule = DeltaMomentum(retention=0.8, unit=unit, precondition=precondition, second_decay=0.9)
    momentum, second = torch.zeros(shape).double(), torch.zeros(shape).double()
    for number, (gradient, change) in enumerate(zip(gradients, _steps(rule, gradients)[1], strict=True), 1):
        norm = math.sqrt(float((gradient**2).sum()))
        key = gradient * (math.sqrt(0.8) / (norm if unit else max(norm, math.sqrt(0.8))))
        second = 0.9 * second + 0.1 * gradient**2
        descent = gradient / ((second / (1 - 0.9**number)).sqrt() + 1e-8) if precondition else gradient
        expected = torch.zeros(shape).double()
        for f in range(num_rows):
            for d in range(width):
                gram = [sum(key[r, e] * key[r, d] for r in range(num_rows)) for e in range(width)]
                kept = sum(momentum[f, e] * (0.8 * (e == d) - gram[e]) for e in range(width))
                expected[f, d] = kept - 0.1 * descent[f, d]
        momentum = expected
        assert distance(change, expected) <= 1e-13


@given(st.integers(0, 10_000), st.floats(1e-6, 1e12), st.booleans(), st.floats(0.01, 1.0))
def test_delta_momentum_never_amplifies(seed: int, scale: float, unit: bool, retention: float) -> None:
    """With rate 0 what is remembered cannot grow, whatever the gradient: eigenvalues in [0, retention]."""
    momentum, gradient = _normal(3, 4, seed=seed), scale * _normal(3, 4, seed=seed + 1)
    after, _ = DeltaMomentum(retention=retention, unit=unit).step({"momentum": momentum}, gradient, 0.0)
    assert float(after["momentum"].norm()) <= retention * float(momentum.norm()) * (1 + 1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_deep_momentum_is_equation_50(objective: str) -> None:
    """The memory's gradients by autograd of L2 written out row by row."""
    rule = DeepMomentum(num_hidden=7, retention=0.9, memory_rate=0.2, objective=objective)
    gradients = _normal(4, 3, 5)
    state = rule.initial(gradients[0])
    start = state["up"].clone()
    for gradient in gradients:
        u = gradient / gradient.square().mean().sqrt()
        leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
        total = torch.zeros((), dtype=torch.float64)
        for f in range(3):
            answer = leaves["bias"][f] + leaves["down"] @ torch.tanh(leaves["up"] @ u[f]) / math.sqrt(7)
            losses = {
                "aligned": answer @ u[f],
                "printed": answer.sum(),
                "regression": 0.5 * (answer + u[f]) @ (answer + u[f]),
            }
            total = total + losses[objective]
        slopes = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
        state, change = rule.step(state, gradient, 0.5)
        with torch.no_grad():
            up = start + 0.9 * (leaves["up"] - start) - 0.2 * slopes["up"] / 3
            down, bias = 0.9 * leaves["down"] - 0.2 * slopes["down"] / 3, 0.9 * leaves["bias"] - 0.2 * slopes["bias"]
            expected = torch.stack([bias[f] + down @ torch.tanh(up @ u[f]) / math.sqrt(7) for f in range(3)])
        for name, value in (("up", up), ("down", down), ("bias", bias)):
            assert distance(state[name], value) <= 1e-13
        assert distance(change, 0.5 * expected) <= 1e-13


def test_deep_momentum_without_its_mlp_is_momentum_and_with_it_stays_bounded() -> None:
    gradients = _normal(40, 3, 5)
    _, changes = _steps(DeepMomentum(max_norm=1e-30, memory_rate=0.2, retention=0.7), gradients)
    momentum = torch.zeros(3, 5, dtype=torch.float64)
    for gradient, change in zip(gradients, changes, strict=True):
        momentum = 0.7 * momentum - 0.2 * gradient / gradient.square().mean().sqrt()
        assert distance(change, 0.1 * momentum) <= 1e-14
    rule = DeepMomentum(memory_rate=10.0, max_norm=2.0)
    state, _ = _steps(rule, gradients)
    assert float(state["down"].norm()) == pytest.approx(2.0)
    assert float((state["up"] - rule.initial(gradients[0])["up"]).norm()) <= 2.0 + 1e-9


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)])
def test_newton_schulz_cubic_reaches_the_orthogonal_factor(shape: tuple[int, int]) -> None:
    matrix = _normal(*shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert distance(newton_schulz(matrix, 40, "cubic"), left @ right) <= 1e-9
    values = torch.linalg.svdvals(newton_schulz(matrix, 5, "quintic"))
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3
    assert not bool(newton_schulz(torch.zeros(shape), 5, "quintic").any())


def test_newton_schulz_cubic_is_descent_on_orthogonality() -> None:
    """Eq. 43, 44: O - 1/8 grad |O^T O - I|^2."""
    matrix = _normal(5, 3)
    out = (matrix / matrix.norm()).requires_grad_()
    loss = (out.T @ out - torch.eye(3, dtype=torch.float64)).square().sum()
    (slope,) = torch.autograd.grad(loss, out)
    assert distance(newton_schulz(matrix, 1, "cubic"), (out - slope / 8).detach()) <= 1e-14


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("target_rms", [None, 0.2])
def test_m3_is_algorithm_1(accumulate: bool, target_rms: float | None) -> None:
    """As the paper's two nested loops, the slow step at the head of each chunk."""
    rule = M3(0.9, 0.99, 0.8, slow_weight=0.5, frequency=3, target_rms=target_rms, accumulate=accumulate)
    gradients = _normal(8, 3, 4)
    _, changes = _steps(rule, gradients)
    zero = torch.zeros(3, 4, dtype=torch.float64)
    first, second, slow, number = zero, zero, zero, 0
    for chunk in range(3):
        earlier = gradients[(chunk - 1) * 3 : chunk * 3].sum(0) if chunk else None
        if earlier is not None:
            slow = slow + 0.8 * earlier if accumulate else 0.8 * slow + 0.2 * earlier / 3
        slow_direction = newton_schulz(slow)
        for gradient in gradients[chunk * 3 : chunk * 3 + 3]:
            number += 1
            first = first + 0.9 * gradient if accumulate else 0.9 * first + 0.1 * gradient
            second = second + 0.99 * gradient**2 if accumulate else 0.99 * second + 0.01 * gradient**2
            mean = second if accumulate else second / (1 - 0.99**number)
            expected = (newton_schulz(first) + 0.5 * slow_direction) / (mean.sqrt() + 1e-8)
            if target_rms is not None and not accumulate:
                expected = expected * target_rms / expected.square().mean().sqrt()
            assert distance(changes[number - 1], -0.1 * expected) <= 1e-11


@each_rule
def test_a_batch_is_its_rows_one_by_one(rule: Rule) -> None:
    gradients = _normal(7, 2, 3, 4, 5)
    rate = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]], dtype=torch.float64)
    state, changes = _steps(rule, gradients, rate)
    for i in range(2):
        for j in range(3):
            alone, alone_changes = _steps(rule, gradients[:, i, j], float(rate[i, j]))
            assert distance(torch.stack(changes)[:, i, j], torch.stack(alone_changes)) <= 1e-11
            assert state.keys() == alone.keys()
            assert all(distance(state[name][i, j], alone[name]) <= 1e-11 for name in state)


@each_rule
def test_rows_may_be_at_different_clocks(rule: Rule) -> None:
    """A session that has made two steps more is not disturbed by one that begins."""
    gradients = _normal(6, 4, 5)
    state, _ = _steps(rule, gradients[:2])
    fresh = rule.initial(gradients[0])
    together = {name: torch.stack([state[name], fresh[name]]) for name in state}
    for late in range(2, 6):
        state, change = rule.step(state, gradients[late], 0.1)
        fresh, fresh_change = rule.step(fresh, gradients[late - 2], 0.1)
        together, both = rule.step(together, torch.stack([gradients[late], gradients[late - 2]]), 0.1)
        assert distance(both[0], change) <= 1e-11
        assert distance(both[1], fresh_change) <= 1e-11


@each_rule
def test_a_step_changes_nothing_in_place(rule: Rule) -> None:
    gradients = _normal(4, 4, 5)
    state, _ = _steps(rule, gradients[:3])
    kept, gradient = {name: value.clone() for name, value in state.items()}, gradients[3].clone()
    rule.step(state, gradients[3], 0.1)
    assert torch.equal(gradient, gradients[3])
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@pytest.mark.parametrize("name", RULES)
def test_least_squares_falls(name: str) -> None:
    """As printed, the deep momentum moves the same way whatever the gradient is, and M3's M1 never forgets."""
    rule, peak = RULES[name], 0.5 if name.startswith("m3") else 0.05
    x, target, weight = _normal(64, 5), _normal(4, 5, seed=1), torch.zeros(4, 5, dtype=torch.float64)
    state, losses = rule.initial(weight), []
    for number in range(201):
        error = (weight - target) @ x.T
        losses.append(float(error.square().sum()))
        state, change = rule.step(state, error @ x / 64, peak * (1 - number / 200))
        weight = weight + change
    if name == "deep printed":
        assert losses[-1] > losses[0]
    else:
        assert losses[-1] < (0.3 if name == "m3 printed" else 0.05) * losses[0]

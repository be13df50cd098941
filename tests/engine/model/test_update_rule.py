"""The closed form of a chunk against the recurrence it stands for, written out a token at a time (law 1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.model.update_rule import (
    DEFAULT_RULE,
    Chunk,
    Earlier,
    Momentum,
    Rule,
    Weights,
    apply_momentum,
    apply_write,
    plan_write,
    read,
    read_within,
    solve_delta,
)
from tests.engine.model.recurrence import PlainMemory
from tests.tiny import distance

TOLERANCE = 1e-9
UNBOUNDED = 1e12
RULES = [
    *(Rule(write, objective) for write in ("dgd", "dgd-layers", "gradient") for objective in ("l2", "dot")),
    Rule("dgd-layers", "l2", 2.0),
]
ROWS, HEADS, MEMORIES, KEY, HIDDEN = 2, 2, 2, 6, 5


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _weights(seed: int, decay_towards: str, memories: int = MEMORIES) -> Weights:
    random = _random(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    moving = draw(ROWS, HEADS, memories, HIDDEN, KEY), draw(ROWS, HEADS, memories, KEY, HIDDEN)
    if decay_towards == "zero":
        return Weights(*moving, None, None)
    return Weights(*moving, draw(HEADS, memories, HIDDEN, KEY), draw(HEADS, memories, KEY, HIDDEN))


def _chunk(seed: int, num_slots: int) -> Chunk:
    random = _random(seed + 1)
    key, value = torch.randn(2, ROWS, HEADS, num_slots, KEY, dtype=torch.float64, generator=random)
    eta, forget = torch.rand(2, ROWS, HEADS, num_slots, dtype=torch.float64, generator=random)
    alpha = 1 - 0.2 * forget
    unit = torch.nn.functional.normalize
    return Chunk(unit(key, dim=-1), unit(value, dim=-1), torch.minimum(eta, alpha), alpha)


def _written(
    weights: Weights, chunk: Chunk, residual: bool = True, limit: float = UNBOUNDED, rule: Rule = DEFAULT_RULE
) -> tuple[Tensor, Tensor]:
    """(W2, W1) after the chunk."""
    delta = solve_delta(chunk, None, rule)
    write = plan_write(weights, delta, residual, None, rule)
    return apply_write(weights, write, delta.retained_BHC[:, :, -1], limit)


def _plain(
    weights: Weights,
    row: int,
    head: int,
    memory: int,
    residual: bool,
    rule: Rule = DEFAULT_RULE,
    share: Tensor | None = None,
) -> PlainMemory:
    moving = weights.decaying_w2_BHMFK[row, head, memory], weights.decaying_w1_BHMOF[row, head, memory]
    fixed = torch.zeros_like(moving[0]), torch.zeros_like(moving[1])
    if weights.fixed_w2_HMFK is not None and weights.fixed_w1_HMOF is not None:
        fixed = weights.fixed_w2_HMFK[head, memory], weights.fixed_w1_HMOF[head, memory]
    return PlainMemory(fixed, moving[0], moving[1], residual, rule, share)


def _write_all(plain: PlainMemory, chunk: Chunk, row: int, head: int) -> None:
    """A chunk's writes, one token after another."""
    for t in range(chunk.eta_BHC.shape[2]):
        plain.write(
            chunk.key_BHCK[row, head, t],
            chunk.value_BHCK[row, head, t],
            chunk.eta_BHC[row, head, t],
            chunk.alpha_BHC[row, head, t],
        )


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), num_slots=st.integers(1, 40))
def test_law_1_a_chunk_in_closed_form_is_the_recurrence(
    decay_towards: str, residual: bool, rule: Rule, seed: int, num_slots: int
) -> None:
    weights, chunk = _weights(seed, decay_towards), _chunk(seed, num_slots)
    w2, w1 = _written(weights, chunk, residual, rule=rule)
    for row in range(ROWS):
        for head in range(HEADS):
            for memory in range(MEMORIES):
                plain = _plain(weights, row, head, memory, residual, rule)
                _write_all(plain, chunk, row, head)
                assert distance(w2[row, head, memory], plain.w2) <= TOLERANCE
                assert distance(w1[row, head, memory], plain.w1) <= TOLERANCE


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), num_slots=st.integers(1, 24))
def test_law_1_a_read_within_the_chunk_is_that_of_the_state_after_the_tokens_writes(
    decay_towards: str, rule: Rule, seed: int, num_slots: int
) -> None:
    weights, chunk = _weights(seed, decay_towards, memories=1), _chunk(seed, num_slots)
    query = torch.randn(ROWS, HEADS, num_slots, KEY, dtype=torch.float64, generator=_random(seed + 2))
    delta = solve_delta(chunk, None, rule)
    write = plan_write(weights, delta, True, None, rule)
    mask = torch.ones(num_slots, num_slots, dtype=torch.float64).tril()
    answers = read_within(weights, write, query, mask, delta.retained_BHC)
    for row in range(ROWS):
        for head in range(HEADS):
            plain = _plain(weights, row, head, 0, True, rule)
            for t in range(num_slots):
                plain.write(
                    chunk.key_BHCK[row, head, t],
                    chunk.value_BHCK[row, head, t],
                    chunk.eta_BHC[row, head, t],
                    chunk.alpha_BHC[row, head, t],
                )
                assert distance(answers[row, head, t], plain.read(query[row, head, t])) <= TOLERANCE


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), first=st.integers(1, 20), second=st.integers(1, 20))
def test_law_1_slots_planned_after_others_are_as_if_planned_with_them(
    decay_towards: str, rule: Rule, seed: int, first: int, second: int
) -> None:
    weights, chunk = _weights(seed, decay_towards, memories=1), _chunk(seed, first + second)
    whole_delta = solve_delta(chunk, None, rule)
    whole = plan_write(weights, whole_delta, True, None, rule)
    head, tail = (
        Chunk(*(part[:, :, cut] for part in (chunk.key_BHCK, chunk.value_BHCK, chunk.eta_BHC, chunk.alpha_BHC)))
        for cut in (slice(first), slice(first, None))
    )
    begun_delta = solve_delta(head, None, rule)
    begun = plan_write(weights, begun_delta, True, None, rule)
    earlier = Earlier(
        begun.key_BHCK, begun.activation_BHMCF, begun.step_BHMCO, begun.inner_BHMCF, begun_delta.retained_BHC[:, :, -1:]
    )
    delta = solve_delta(tail, earlier, rule)
    rest = plan_write(weights, delta, True, earlier, rule)
    assert distance(delta.retained_BHC, whole_delta.retained_BHC[:, :, first:]) <= TOLERANCE
    for part in ("activation_BHMCF", "step_BHMCO", "inner_BHMCF"):
        joined = torch.cat([getattr(begun, part), getattr(rest, part)], 3)
        assert distance(joined, getattr(whole, part)) <= TOLERANCE


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@pytest.mark.parametrize("limit", [UNBOUNDED, 2.0])
def test_law_1_momentum_over_chunks_is_the_recurrence(rule: Rule, decay_towards: str, limit: float) -> None:
    weights = _weights(8, decay_towards)
    share = torch.tensor([0.3, 0.8], dtype=torch.float64)
    carried = torch.zeros_like(weights.decaying_w2_BHMFK), torch.zeros_like(weights.decaying_w1_BHMOF)
    plain = {
        (row, head, memory): _plain(weights, row, head, memory, True, rule, share[head])
        for row in range(ROWS)
        for head in range(HEADS)
        for memory in range(MEMORIES)
    }
    for number in range(4):
        chunk = _chunk(20 + number, 7)
        delta = solve_delta(chunk, None, rule)
        write = plan_write(weights, delta, True, None, rule)
        moving, carried = apply_momentum(weights, write, delta.retained_BHC[:, :, -1], limit, Momentum(*carried, share))
        weights = replace(weights, decaying_w2_BHMFK=moving[0], decaying_w1_BHMOF=moving[1])
        for place, one in plain.items():
            _write_all(one, chunk, *place[:2])
            one.close_chunk(limit)
            assert distance(moving[0][place], one.w2) <= TOLERANCE
            assert distance(moving[1][place], one.w1) <= TOLERANCE
            assert distance(carried[0][place], one.carried[0]) <= TOLERANCE
            assert distance(carried[1][place], one.carried[1]) <= TOLERANCE


def test_the_plain_update_is_momentum_with_a_share_of_zero() -> None:
    weights, chunk = _weights(9, "initial"), _chunk(9, 7)
    delta = solve_delta(chunk)
    write, retained = plan_write(weights, delta, residual=True), delta.retained_BHC[:, :, -1]
    carried = torch.ones_like(weights.decaying_w2_BHMFK), torch.ones_like(weights.decaying_w1_BHMOF)
    nothing, half = (Momentum(*carried, torch.full((HEADS,), share).double()) for share in (0.0, 0.5))
    plain = apply_write(weights, write, retained, UNBOUNDED)
    for found, expected in zip(apply_momentum(weights, write, retained, UNBOUNDED, nothing)[0], plain, strict=True):
        assert distance(found, expected) <= TOLERANCE
    for found, expected in zip(apply_momentum(weights, write, retained, UNBOUNDED, half)[0], plain, strict=True):
        assert distance(found, expected + 0.5) <= TOLERANCE


def test_the_dot_product_writes_towards_its_target_whatever_is_there_already() -> None:
    # Eq. 92 as printed has the other sign: it would write away from the target.
    weights, chunk = _weights(10, "initial"), _chunk(10, 1)
    key = chunk.key_BHCK.unsqueeze(2)
    target = read(weights.total(), chunk.value_BHCK.unsqueeze(2), residual=True)
    small = replace(chunk, eta_BHC=chunk.eta_BHC * 0 + 1e-4, alpha_BHC=torch.ones_like(chunk.alpha_BHC))
    w2, w1 = _written(weights, small, rule=Rule("gradient", "dot"))
    moved = replace(weights, decaying_w2_BHMFK=w2, decaying_w1_BHMOF=w1)
    before, after = (read(each.total(), key, residual=True) for each in (weights, moved))
    assert bool((((after - before) * target).sum(-1) > 0).all())


def test_the_boundary_read_is_the_paper_s() -> None:
    weights = _weights(3, "initial")
    x = torch.randn(ROWS, HEADS, MEMORIES, 3, KEY, dtype=torch.float64)
    for residual in (True, False):
        found = read(weights.total(), x, residual)
        plain = _plain(weights, 1, 0, 1, residual)
        assert distance(found[1, 0, 1, 2], plain.read(x[1, 0, 1, 2])) <= TOLERANCE


def test_an_empty_slot_does_nothing() -> None:
    weights, chunk = _weights(4, "initial"), _chunk(4, 6)
    nothing = torch.zeros_like(chunk.eta_BHC[:, :, :1])
    padded = Chunk(
        torch.cat([chunk.key_BHCK, torch.zeros_like(chunk.key_BHCK[:, :, :1])], 2),
        torch.cat([chunk.value_BHCK, torch.zeros_like(chunk.value_BHCK[:, :, :1])], 2),
        torch.cat([chunk.eta_BHC, nothing], 2),
        torch.cat([chunk.alpha_BHC, nothing + 1], 2),
    )
    plain, filled = (_written(weights, c) for c in (chunk, padded))
    assert distance(filled[0], plain[0]) <= TOLERANCE
    assert distance(filled[1], plain[1]) <= TOLERANCE


def test_rows_heads_and_memories_do_not_mix() -> None:
    weights, chunk = _weights(5, "initial"), _chunk(5, 9)
    other = replace(weights, decaying_w2_BHMFK=weights.decaying_w2_BHMFK.clone())
    other.decaying_w2_BHMFK[1, 1, 1] += 1
    before, after = (_written(w, chunk)[0] for w in (weights, other))
    changed = (before != after).flatten(3).any(-1)
    assert changed.nonzero().tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("limit", [0.5, 3.0, UNBOUNDED])
def test_law_6_each_matrix_is_drawn_back_into_its_ball(limit: float) -> None:
    weights, chunk = _weights(6, "zero"), _chunk(6, 12)
    for bounded, free in zip(_written(weights, chunk, limit=limit), _written(weights, chunk), strict=True):
        norms = free.flatten(3).norm(dim=-1)
        assert torch.allclose(bounded.flatten(3).norm(dim=-1), norms.clamp_max(limit))
        # Only the length changes, never the direction.
        assert distance(bounded / bounded.norm(dim=(-2, -1), keepdim=True), free / norms[..., None, None]) <= TOLERANCE


def test_the_target_is_constant_in_the_inner_derivative_and_learnable_in_the_outer() -> None:
    weights, chunk = _weights(7, "initial"), _chunk(7, 5)
    value = chunk.value_BHCK.clone().requires_grad_()
    w2, _ = _written(weights, replace(chunk, value_BHCK=value))
    (gradient,) = torch.autograd.grad(w2.square().sum(), value)
    # Every value but the last is written before the end, and the last one too: all matter to what is stored.
    assert bool((gradient.abs().amax(-1) > 0).all())

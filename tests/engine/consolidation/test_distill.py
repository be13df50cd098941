"""Distillation: a shared level takes over answers, every session within its share, broken rows left out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import LEVEL_OPTIMIZERS
from engine.consolidation.distill import Material, draw, spring_on, step, with_step_state, without_step_state
from engine.consolidation.dreams import Dream, Example, as_rows, examples, likelihood
from engine.consolidation.policy import GenerationPolicy
from engine.model.hope import Memory
from engine.model.shared import initial_shared, session_part, with_shared
from tests.tiny import tiny_model

MODEL = tiny_model(writes_hard=False)
LEVEL = MODEL.config.levels[-1]
POLICY = GenerationPolicy(rows_per_step=8)


def dream(seed: int, length: int = 12) -> Dream:
    tokens = torch.randint(8, 64, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dream(tuple(tokens), 6)


def certain(one: Dream, session: str = "") -> Example:
    """A teacher that is sure of the dream's reply."""
    answer = torch.full((len(one.tokens) - 1 - one.reply_at, 64), -12.0)
    for place, token in enumerate(one.tokens[one.reply_at + 1 :]):
        answer[place, token] = 0.0
    return Example(one, torch.log_softmax(answer, -1).half(), session)


def learn(rows: list[Example], steps: int, policy: GenerationPolicy = POLICY) -> tuple[Memory, list[float]]:
    shared = with_step_state(MODEL, LEVEL, initial_shared(MODEL), policy)
    losses = []
    for _ in range(steps):
        done = step(MODEL, LEVEL, shared, rows, [1.0 / len(rows)] * len(rows), policy, 1.0)
        shared = done.shared
        losses.append(done.loss)
    return without_step_state(LEVEL, shared), losses


def test_a_fresh_session_comes_to_answer_as_the_dreamer_did() -> None:
    dreams = [dream(seed) for seed in range(3)]
    shared, losses = learn([certain(one) for one in dreams], 40)
    assert losses[-1] < 0.2 * losses[0]
    rows, memory = as_rows(dreams), MODEL.initial_memory(1)
    assert bool((likelihood(MODEL, with_shared(memory, shared), rows) > likelihood(MODEL, memory, rows) + 5).all())
    assert int(shared[f"{LEVEL.name}.updates"]) == 40


def test_a_spring_holds_what_matters_to_earlier_replies() -> None:
    earlier, later = [dream(seed) for seed in range(3)], [dream(seed) for seed in range(3, 6)]
    first, _ = learn([certain(one) for one in earlier], 40)
    spring = spring_on(MODEL, LEVEL, first, [certain(one) for one in earlier])
    means = torch.stack([value.mean() for value in spring.importance.values()])
    assert float(means.mean()) == pytest.approx(1.0)

    @torch.no_grad()
    def known_after(strength: float) -> list[float]:
        policy = replace(POLICY, elastic_strength=strength)
        shared = with_step_state(MODEL, LEVEL, first, policy)
        for _ in range(20):
            shared = step(
                MODEL, LEVEL, shared, [certain(one) for one in later], [1 / 3] * 3, policy, 1.0, spring=spring
            ).shared
        memory = with_shared(MODEL.initial_memory(1), shared)
        return [float(likelihood(MODEL, memory, as_rows(some)).mean()) for some in (earlier, later)]

    loose, held = known_after(0.0), known_after(10.0)
    assert held[0] > loose[0] + 1, "what was known stays better known"
    assert held[1] < loose[1], "at a price"


@pytest.mark.parametrize("optimizer", LEVEL_OPTIMIZERS)
def test_any_optimizer_of_levels_can_do_it(optimizer: str) -> None:
    rate = 1.0 if optimizer in ("sgd", "delta_momentum", "deep_momentum") else 0.01
    policy = replace(POLICY, optimizer=optimizer, learning_rate=rate)
    shared, losses = learn([certain(dream(0))], 15, policy)
    assert losses[-1] < losses[0]
    assert set(shared) == set(initial_shared(MODEL))


def test_nothing_but_the_shared_level_changes() -> None:
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    start = with_step_state(MODEL, LEVEL, initial_shared(MODEL), POLICY)
    kept = {name: value.clone() for name, value in start.items()}
    step(MODEL, LEVEL, start, [certain(dream(0))], [1.0], POLICY, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in start.items())


def test_what_is_asked_at_home_is_asked_of_the_session_itself() -> None:
    told = torch.randint(8, 64, (1, 24), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        _, home = MODEL(told, MODEL.initial_memory(1))
    home = session_part(home, MODEL)
    rows = [dream(seed, length) for seed, length in ((0, 12), (1, 30), (2, 13))]
    nobody, session = (examples(MODEL, memory, rows) for memory in (MODEL.initial_memory(1), home))
    start = with_step_state(MODEL, LEVEL, initial_shared(MODEL), POLICY)
    at_home = [replace(one, at_home=True) for one in session]

    def loss(rows: list[Example]) -> float:
        return step(MODEL, LEVEL, start, rows, [1 / 3] * 3, POLICY, 1.0, home=home).loss

    # Who answers so already has nothing to learn.
    assert loss(at_home) < 0.2 * loss(session)
    assert loss([nobody[0], at_home[1], nobody[2]]) < 0.2 * loss(session)


def test_a_row_without_a_finite_answer_is_left_out_and_the_others_are_learned() -> None:
    broken = replace(certain(dream(1)), answer_NV=torch.full((5, 64), torch.nan).half())
    start = with_step_state(MODEL, LEVEL, initial_shared(MODEL), POLICY)
    done = step(MODEL, LEVEL, start, [certain(dream(0)), broken], [0.5, 0.5], POLICY, 1.0)
    alone = step(MODEL, LEVEL, start, [certain(dream(0))], [0.5], POLICY, 1.0)
    assert done.num_unmoved == 1
    for name, value in done.shared.items():
        assert bool(torch.isfinite(value.float()).all())
        torch.testing.assert_close(value, alone.shared[name], atol=1e-5, rtol=1e-4)


def test_where_no_row_is_finite_nothing_moves() -> None:
    broken = replace(certain(dream(1)), answer_NV=torch.full((5, 64), torch.nan).half())
    start = with_step_state(MODEL, LEVEL, initial_shared(MODEL), replace(POLICY, optimizer="sgd"))
    done = step(MODEL, LEVEL, start, [broken], [1.0], replace(POLICY, optimizer="sgd"), 1.0)
    assert (done.num_unmoved, done.update_norm) == (1, 0.0)
    assert all(torch.equal(value, start[name]) for name, value in done.shared.items())


def test_the_norm_stays_within_its_bound() -> None:
    policy = replace(POLICY, most_drift=0.5)
    shared, _ = learn([certain(dream(0))], 20, policy)
    squares = [value.square().sum() for value in shared.values() if value.is_floating_point()]
    assert float(torch.stack(squares).sum().sqrt()) <= 0.5 * 1.001


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_no_session_has_more_than_its_share_however_much_it_said(sizes: list[int], seed: int) -> None:
    one = certain(dream(0))
    dreams = [replace(one, session=f"s{number}") for number, size in enumerate(sizes) for _ in range(size)]
    material = Material(dreams, [replace(one, session="r")], [[replace(one, session="c")], []])
    policy = GenerationPolicy()
    chosen, weights = draw(material, policy, random.Random(seed))
    assert sum(weights) == pytest.approx(1.0)
    counted = Counter(example.session for example in chosen)
    num_dreams = round(policy.rows_per_step * policy.dream_share)
    most = max(1, round(num_dreams * policy.share_of_session(len(sizes))))
    assert all(counted[f"s{number}"] <= most for number in range(len(sizes)))
    assert sum(counted[f"s{number}"] for number in range(len(sizes))) <= num_dreams
    assert counted["r"] == round(policy.rows_per_step * policy.rehearsal_share)

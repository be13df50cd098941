"""The five memories of a layer in closed form against the paper's recurrence token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.config import ADAPTIVE
from engine.model.grid import cut
from engine.model.hope import Hope
from engine.model.self_modifying import SelfModifyingTitans
from tests.engine.model.recurrence import PlainTitans, places
from tests.tiny import distance, tiny_config, tiny_model

TOLERANCE = 1e-9
NUM_TOKENS = 43  # two chunks of the projections, five of the memory, and an open one of each


def _layer(**changes: Any) -> SelfModifyingTitans:
    block = tiny_model(**changes).double().blocks[0]
    titans = block.titans
    assert isinstance(titans, SelfModifyingTitans)
    return titans


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@pytest.mark.parametrize("max_drift", [16.0, 0.4])
@pytest.mark.parametrize("chunks", [(8, 16), (16, 16), (4, 16)])
def test_a_layer_is_the_plain_recurrence(decay_towards: str, max_drift: float, chunks: tuple[int, int]) -> None:
    chunk, frame = chunks
    titans = _layer(decay_towards=decay_towards, max_drift=max_drift, chunk_memory=chunk, chunk_projections=frame)
    x = torch.randn(2, NUM_TOKENS, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pieces = cut(torch.zeros(2, dtype=torch.int64), None, NUM_TOKENS, chunk, frame)
    with torch.no_grad():
        out, state = titans(x, titans.initial_state(2), pieces, None)
        for row in range(2):
            plain = PlainTitans(titans)
            assert distance(out[row], plain.run(x[row])) <= TOLERANCE
            for head, memories in enumerate(plain.heads):
                # The state holds what closed chunks have written; the open one waits in its frame.
                for name, (stack, at) in places(titans.config).items():
                    fixed, settled = memories[name].fixed, memories[name].boundary
                    assert distance(state[f"{stack}.w2"][row, head, at] + fixed[0], settled[0]) <= TOLERANCE
                    assert distance(state[f"{stack}.w1"][row, head, at] + fixed[1], settled[1]) <= TOLERANCE


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("write_rule", ["dgd", "gradient"])
def test_every_way_to_write_is_the_plain_recurrence(
    write_rule: str, objective: str, momentum: bool, decay_towards: str
) -> None:
    changes = {"write_rule": write_rule, "objective": objective, "momentum": momentum, "decay_towards": decay_towards}
    titans = _layer(**changes, max_drift=2.0)
    x = torch.randn(1, NUM_TOKENS, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        if momentum:
            titans.momentum_bias["memory"].copy_(torch.linspace(-2, 2, titans.config.num_heads))
        state = titans.initial_state(1)
        out, state = titans(x, state, cut(torch.zeros(1), None, NUM_TOKENS, 8, 16), None)
        plain = PlainTitans(titans)
        assert distance(out[0], plain.run(x[0])) <= TOLERANCE
    for head, memories in enumerate(plain.heads):
        for name, (stack, at) in places(titans.config).items():
            carried = [state[f"{stack}.{part}"][0, head, at] for part in ("s2", "s1")] if momentum else []
            for found, expected in zip(carried, memories[name].carried, strict=momentum):
                assert float(expected.norm()) > 1e-3
                assert distance(found, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "stacks"),
    [
        ({"adaptive": ()}, {"memory": 1}),
        ({"adaptive": ("query",)}, {"memory": 1, "projections": 1}),
        ({"adaptive": ("alpha", "value")}, {"memory": 1, "projections": 1, "rates": 1}),
        ({"adaptive": ADAPTIVE}, {"memory": 1, "projections": 3, "rates": 2}),
        ({"adaptive": ADAPTIVE, "retention": False}, {"memory": 1, "projections": 3, "rates": 1}),
        ({"adaptive": ("alpha",), "retention": False}, {"memory": 1}),
    ],
)
def test_only_what_is_adaptive_has_a_memory(changes: dict[str, Any], stacks: dict[str, int]) -> None:
    titans = _layer(**changes)
    state = titans.initial_state(1)
    assert {name.split(".")[0]: value.shape[2] for name, value in state.items() if name.endswith(".w2")} == stacks


def test_without_retention_nothing_is_forgotten() -> None:
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    for retention in (True, False):
        titans = _layer(retention=retention)
        with torch.no_grad():
            _, state = titans(x, titans.initial_state(1), cut(torch.zeros(1), None, 5, 8, 16), None)
        forget = state["open.rates"][0, :, :5, 1]
        assert bool((forget > 0).all()) == retention
        assert bool(forget.any()) == retention


def test_momentum_is_bounded_as_the_memories_are() -> None:
    titans = _layer(momentum=True, max_drift=0.4)
    x = torch.randn(1, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        titans.momentum_bias["memory"].fill_(20.0)
        _, state = titans(x, titans.initial_state(1), cut(torch.zeros(1), None, 64, 8, 16), None)
    norms = state["memory.s1"].flatten(3).norm(dim=-1)
    assert float(norms.max()) == pytest.approx(0.4)


def test_every_memory_has_moved() -> None:
    titans = _layer()
    x = torch.randn(1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, state = titans(x, titans.initial_state(1), cut(torch.zeros(1), None, 32, 8, 16), None)
    for name, (stack, at) in places(titans.config).items():
        for part in ("w2", "w1"):
            norms = torch.linalg.vector_norm(state[f"{stack}.{part}"][:, :, at], dim=(-2, -1))
            assert float(norms.min()) > 1e-3, name


def test_the_bound_on_drift_binds() -> None:
    titans = _layer(max_drift=0.4)
    x = torch.randn(1, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, state = titans(x, titans.initial_state(1), cut(torch.zeros(1), None, 64, 8, 16), None)
    norms = state["memory.w1"].flatten(3).norm(dim=-1)
    assert float(norms.max()) == pytest.approx(0.4)


@pytest.mark.parametrize("largest_step", [1.0, 2.0])
def test_step_sizes_never_exceed_their_share_of_retention(largest_step: float) -> None:
    titans = _layer(largest_step=largest_step)
    with torch.no_grad():
        titans.eta_bias.fill_(20.0)
        titans.alpha_bias.fill_(-20.0)
        state = titans.initial_state(1)
        x = torch.randn(1, 5, 32, dtype=torch.float64)
        _, state = titans(x, state, cut(torch.zeros(1), None, 5, 8, 16), None)
    eta, forget = state["open.rates"][0, :, :5].unbind(-1)
    assert torch.equal(eta, largest_step * (1 - forget))
    assert float(forget.max()) == pytest.approx(1 - titans.config.retention_floor)


def _gradients(
    titans: SelfModifyingTitans, num_tokens: int, num_counted: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a layer answers to some tokens, and the gradients of the last answers' sum."""
    titans.zero_grad()
    x = torch.randn(1, num_tokens, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    config = titans.config
    pieces = cut(torch.zeros(1, dtype=torch.int64), None, num_tokens, config.chunk_memory, config.chunk_projections)
    out, _ = titans(x, titans.initial_state(1), pieces, None)
    out[:, -num_counted:].sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in titans.named_parameters() if p.grad is not None}


def _norm(gradients: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())


@pytest.mark.parametrize(
    ("write_rule", "largest_step"),
    # Plain descent has nothing that holds it where steps are larger than 1.
    [("dgd-layers", 1.0), ("dgd-layers", 2.0), ("dgd", 1.0), ("dgd", 2.0), ("gradient", 1.0)],
)
def test_an_untrained_layers_gradient_does_not_grow_with_the_text(write_rule: str, largest_step: float) -> None:
    torch.manual_seed(0)
    titans = Hope(tiny_config(write_rule=write_rule, largest_step=largest_step)).double().blocks[0].titans
    assert isinstance(titans, SelfModifyingTitans)
    short, long = (_norm(_gradients(titans, size, 8)[1]) for size in (64, 512))
    assert long < 4 * short


@pytest.mark.parametrize("write_rule", ["dgd-layers", "dgd", "gradient"])
def test_a_first_order_write_computes_the_same_and_its_gradient_does_not_grow_with_the_text(write_rule: str) -> None:
    first, full = (
        {size: _gradients(layer, size, 8) for size in (8, 64, 512)}
        for layer in (_layer(write_rule=write_rule, write_gradient=kind) for kind in ("first-order", "full"))
    )
    for size in (8, 64, 512):
        assert torch.equal(first[size][0], full[size][0])
    # A chunk that stands at the beginning writes on what nobody has written.
    assert all(torch.equal(gradient, full[8][1][name]) for name, gradient in first[8][1].items())
    # Contributions add up; they do not multiply.
    assert _norm(first[512][1]) < 8 * _norm(first[64][1])
    assert _norm(full[512][1]) > 1e4 * _norm(first[512][1])

"""The five memories of a layer in closed form against the paper's recurrence token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.model.grid import cut
from engine.model.self_modifying import SelfModifyingTitans
from tests.engine.model.recurrence import PLACES, PlainTitans
from tests.tiny import distance, tiny_model

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
                for name, (stack, at) in PLACES.items():
                    fixed, settled = memories[name].fixed, memories[name].boundary
                    assert distance(state[f"{stack}.w2"][row, head, at] + fixed[0], settled[0]) <= TOLERANCE
                    assert distance(state[f"{stack}.w1"][row, head, at] + fixed[1], settled[1]) <= TOLERANCE


def test_every_memory_has_moved() -> None:
    titans = _layer()
    x = torch.randn(1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, state = titans(x, titans.initial_state(1), cut(torch.zeros(1), None, 32, 8, 16), None)
    for name, (stack, at) in PLACES.items():
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


def test_step_sizes_never_exceed_retention() -> None:
    titans = _layer()
    with torch.no_grad():
        titans.eta_bias.fill_(20.0)
        titans.alpha_bias.fill_(-20.0)
        state = titans.initial_state(1)
        x = torch.randn(1, 5, 32, dtype=torch.float64)
        _, state = titans(x, state, cut(torch.zeros(1), None, 5, 8, 16), None)
    eta, forget = state["open.rates"][0, :, :5].unbind(-1)
    assert torch.equal(eta, 1 - forget)
    assert float(forget.max()) == pytest.approx(1 - titans.config.retention_floor)

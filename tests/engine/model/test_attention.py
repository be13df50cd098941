"""Hope-Attention's state: every token in the slot of its position, in rows that stand anywhere."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.attention import CausalAttention
from engine.model.layers import rotate
from tests.engine.model.recurrence import attend
from tests.tiny import distance, initial, random_tokens, tiny_model

TOLERANCE = 1e-9


def _layer() -> CausalAttention:
    return tiny_model(mixer="attention").double().blocks[0].attention  # type: ignore[return-value]


@settings(max_examples=15)
@given(calls=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=4))
def test_law_1_ragged_calls_are_the_plain_loop(calls: list[list[int]]) -> None:
    layer, reads = _layer(), [sum(row) for row in zip(*calls, strict=True)]
    x = torch.randn(3, max(reads) + 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out, state, position = torch.zeros_like(x), layer.initial_state(3), torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        for counts in calls:
            padded = torch.full((3, max(counts) + 1, 32), 7.0, dtype=torch.float64)
            for row, count in enumerate(counts):
                padded[row, :count] = x[row, int(position[row]) : int(position[row]) + count]
            y, state = layer(padded, state, position, torch.tensor(counts))
            for row, count in enumerate(counts):
                out[row, int(position[row]) : int(position[row]) + count] = y[row, :count]
            position = position + torch.tensor(counts)
        assert state["key"].shape[2] == max(reads)
        for row, read in enumerate(reads):
            if read:
                assert distance(out[row, :read], attend(layer, x[row, :read])) <= TOLERANCE
            # Slots that a row has not filled hold nothing.
            assert not state["key"][row, :, read:].any()


def test_the_score_of_two_tokens_depends_on_their_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(of_query: int, of_key: int) -> float:
        turned = (rotate(x, torch.tensor([[place]])) for x, place in ((query, of_query), (key, of_key)))
        left, right = turned
        return float((left * right).sum())

    assert abs(score(1003, 1000) - score(3, 0)) <= 1e-9
    assert abs(score(3, 0) - score(0, 3)) > 1e-3
    assert abs(score(5, 5) - float((query * key).sum())) <= 1e-12


def test_the_state_grows_with_the_text_and_the_chain_s_does_not() -> None:
    model = tiny_model(mixer="attention")
    with torch.no_grad():
        _, memory = model(random_tokens(model, 2, 10), initial(model, 2))
        _, memory = model(random_tokens(model, 2, 11), memory)
    assert memory["attention.0.value"].shape == (2, 2, 21, 16)
    assert memory["cms.fast.0.w1"].shape == initial(model, 2)["cms.fast.0.w1"].shape
    assert not [name for name in memory if name.startswith("titans")]


def test_far_into_a_text_the_angle_keeps_its_digits() -> None:
    x, place = torch.randn(1, 1, 1, 8), torch.tensor([[10_000_000]])
    exact = rotate(x.double(), place)
    assert float((rotate(x, place).double() - exact).abs().max()) <= 1e-6

"""The plain layers: the norm's formula, and filters that see the past only and carry it over any cut."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.layers import CausalFilters, RMSNorm
from tests.tiny import distance

WIDTH, FILTERS, TAPS, TOKENS = 6, 3, 4, 17


def _filters() -> CausalFilters:
    torch.manual_seed(0)
    return CausalFilters(WIDTH, FILTERS, TAPS).double()


def test_the_norm_is_root_mean_square() -> None:
    norm = RMSNorm(WIDTH).double()
    with torch.no_grad():
        norm.gain.copy_(torch.arange(1.0, WIDTH + 1))
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain
    assert distance(norm(x), expected) <= 1e-12


def test_a_filter_is_a_weighted_sum_of_the_last_tokens() -> None:
    filters = _filters()
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    tail = torch.randn(2, TAPS - 1, WIDTH, dtype=torch.float64)
    out, after = filters(x, tail, None)
    window = torch.cat([tail, x], 1)
    for f in range(FILTERS):
        weight = filters.weight_WF11D[:, f, 0, 0]
        for t in range(TOKENS):
            terms = [weight[tap] * window[:, t + tap] for tap in range(TAPS)]
            assert torch.allclose(out[f, :, t], torch.stack(terms).sum(0))
    assert torch.equal(after, x[:, -(TAPS - 1) :])


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6))
def test_law_1_any_cut_gives_the_same(lengths: list[int]) -> None:
    filters = _filters()
    x = torch.randn(1, sum(lengths), WIDTH, dtype=torch.float64)
    tail = torch.randn(1, TAPS - 1, WIDTH, dtype=torch.float64)
    whole, end = filters(x, tail, None)
    parts = []
    for piece in torch.split(x, lengths, 1):
        out, tail = filters(piece, tail, None)
        parts.append(out)
    assert torch.allclose(torch.cat(parts, 2), whole)
    assert torch.equal(tail, end)


def test_law_2_the_tail_of_a_padded_row_ends_at_its_last_real_token() -> None:
    filters = _filters()
    x = torch.randn(4, TOKENS, WIDTH, dtype=torch.float64)
    tail = torch.randn(4, TAPS - 1, WIDTH, dtype=torch.float64)
    lengths = [TOKENS, 5, 1, 0]
    _, after = filters(x, tail, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = torch.cat([tail[row], x[row, :length]])[-(TAPS - 1) :]
        assert torch.equal(after[row], alone)

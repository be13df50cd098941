"""Laws 1, 2 and 4 for every baseline, as for Hope (tests/laws): whole is pieces, alone is in a batch, causality."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.model.baselines.common import Baseline
from engine.model.hope import Memory
from tests.engine.model.baselines.models import (
    CHUNK,
    LENGTH,
    NAMES,
    VOCAB,
    WINDOW,
    read,
    row_of,
    settled,
    some_tokens,
    stacked,
    tiny,
)
from tests.tiny import distance, memory_distance, same_bits

FLOAT32, FLOAT64 = 1e-4, 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 3, WINDOW - 1, WINDOW, 3 * WINDOW])
def test_law_1_whole_is_any_even_cut(name: str, size: int) -> None:
    model, tokens = tiny(name), some_tokens(2, LENGTH)
    whole, whole_memory = read(model, tokens, [LENGTH])
    sizes = [min(size, LENGTH - start) for start in range(0, LENGTH, size)]
    parts, memory = read(model, tokens, sizes)
    assert distance(parts, whole) <= FLOAT32
    assert memory_distance(memory, whole_memory) <= FLOAT32


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 37), min_size=1, max_size=6))
def test_law_1_whole_is_any_random_split_in_float64(name: str, sizes: list[int]) -> None:
    model, total = tiny(name, double=True), sum(sizes)
    tokens = some_tokens(1, total)
    whole, whole_memory = read(model, tokens, [total])
    parts, memory = read(model, tokens, sizes)
    assert whole.dtype == torch.float64
    assert distance(parts, whole) <= FLOAT64
    assert memory_distance(memory, whole_memory) <= FLOAT64


@torch.no_grad()
def _read_ragged(model: Baseline, tokens_BT: Tensor, calls: list[list[int]]) -> tuple[Tensor, Memory]:
    """Logits and memory where every call takes another number of tokens of each row, padded with anything."""
    num_rows, total = tokens_BT.shape
    logits = torch.zeros(num_rows, total, VOCAB, dtype=model.norm.gain.dtype)
    memory, done = model.initial_memory(num_rows), [0] * num_rows
    for counts in [*calls, [total] * num_rows]:
        taken = [min(count, total - start) for count, start in zip(counts, done, strict=True)]
        padded = some_tokens(num_rows, max(taken) + 2, seed=99)
        for row, (start, count) in enumerate(zip(done, taken, strict=True)):
            padded[row, :count] = tokens_BT[row, start : start + count]
        out, memory = model(padded, memory, torch.tensor(taken))
        for row, (start, count) in enumerate(zip(done, taken, strict=True)):
            logits[row, start : start + count] = out[row, :count]
        done = [start + count for start, count in zip(done, taken, strict=True)]
    return logits, memory


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(calls=st.lists(st.lists(st.integers(0, 25), min_size=3, max_size=3), max_size=4))
def test_law_1_whole_is_any_ragged_batch_in_float64(name: str, calls: list[list[int]]) -> None:
    model, tokens = tiny(name, double=True), some_tokens(3, LENGTH)
    logits, memory = _read_ragged(model, tokens, calls)
    whole, whole_memory = read(model, tokens, [LENGTH])
    assert distance(logits, whole) <= FLOAT64
    assert memory_distance(memory, whole_memory) <= FLOAT64


@pytest.mark.parametrize("name", NAMES)
def test_law_1_whole_is_a_ragged_batch(name: str) -> None:
    model, tokens = tiny(name), some_tokens(3, LENGTH)
    # Little at first: a window's cache is not yet full.
    calls = [[1, 3, 0], [2, 0, 1], [1, CHUNK + 1, 0], [WINDOW, 3, 2 * CHUNK], [5, 0, WINDOW + 1]]
    logits, memory = _read_ragged(model, tokens, calls)
    whole, whole_memory = read(model, tokens, [LENGTH])
    assert distance(logits, whole) <= FLOAT32
    assert memory_distance(memory, whole_memory) <= FLOAT32


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=4))
def test_law_2_a_row_is_as_alone(name: str, rows: list[tuple[int, int]]) -> None:
    model = tiny(name)
    starts, lengths = [start for start, _ in rows], [length for _, length in rows]
    tokens = some_tokens(len(rows), max(lengths) + 1)
    before = [read(model, some_tokens(1, start, seed=start), [start])[1] for start in starts]
    with torch.no_grad():
        logits, after = model(tokens, stacked(before), torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone, memory = read(model, tokens[row : row + 1, :length], [length], before[row])
        assert distance(logits[row : row + 1, :length], alone) <= FLOAT32
        assert memory_distance(settled(row_of(after, row)), settled(memory)) <= FLOAT32


@pytest.mark.parametrize("name", NAMES)
def test_law_2_not_one_bit_of_another_row_comes_over(name: str) -> None:
    model, lengths = tiny(name), torch.tensor([2 * WINDOW + 3, 2, WINDOW])
    _, memory = read(model, some_tokens(3, WINDOW, seed=5), [WINDOW])
    tokens, others = some_tokens(3, 2 * WINDOW + 3), some_tokens(3, 2 * WINDOW + 3, seed=77)
    others[0] = tokens[0]
    changed = {key: value.clone() for key, value in memory.items()}
    for value in changed.values():
        if value.is_floating_point():
            value[1:] += torch.randn_like(value[1:]) * 0.1
    with torch.no_grad():
        logits, after = model(tokens, memory, lengths)
        among_others, after_among_others = model(others, changed, lengths)
    assert torch.equal(among_others[0], logits[0])
    assert not torch.equal(among_others[1, :2], logits[1, :2])
    assert same_bits(row_of(after_among_others, 0), row_of(after, 0))


@pytest.mark.parametrize("name", NAMES)
def test_law_4_a_later_token_changes_no_earlier_logit(name: str) -> None:
    model, tokens = tiny(name), some_tokens(1, LENGTH)
    logits, _ = read(model, tokens, [LENGTH])
    for place in (1, CHUNK - 1, CHUNK, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + CHUNK, LENGTH - 1):
        changed = tokens.clone()
        changed[0, place] = (tokens[0, place] + 1) % VOCAB
        others, _ = read(model, changed, [LENGTH])
        assert torch.equal(others[0, :place], logits[0, :place]), place
        assert not torch.allclose(others[0, place], logits[0, place]), place


@pytest.mark.parametrize("name", NAMES)
def test_law_4_no_gradient_flows_from_a_logit_to_a_later_token(name: str) -> None:
    model, place, kept = tiny(name), WINDOW - 1, []

    def keep(_module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().clone().requires_grad_())
        return kept[0]

    hook = model.embedding.register_forward_hook(keep)
    try:
        hidden, _ = model.hidden(some_tokens(1, LENGTH), model.initial_memory(1))
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(hidden[0, place].square().sum() + hidden[0, place, 0], kept[0])
    assert not gradient[0, place + 1 :].any()
    assert bool(gradient[0, : place + 1].any(-1).all())


@pytest.mark.parametrize("name", NAMES)
def test_law_4_padding_changes_no_logit_and_no_memory(name: str) -> None:
    model, lengths = tiny(name), torch.tensor([2 * WINDOW + 2, 3])
    tokens = some_tokens(2, 3 * WINDOW)
    other = tokens.clone()
    for row, length in enumerate(lengths.tolist()):
        other[row, length:] = (other[row, length:] + 7) % VOCAB
    with torch.no_grad():
        logits, memory = model(tokens, model.initial_memory(2), lengths)
        padded_otherwise, memory_otherwise = model(other, model.initial_memory(2), lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(logits[row, :length], padded_otherwise[row, :length])
    assert same_bits(memory, memory_otherwise)

"""Law 1. Whole = chunk by chunk = token by token = any random split into messages: same logits, same memory.

The chunk grid is anchored at a session's absolute position. Float32 to 1e-4, float64 to 1e-9 against the paper's
recurrence written out a token at a time (tests/engine/model/recurrence.py).
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from engine.config import ATTENTION
from engine.model.continuum import ContinuumBlock
from engine.model.hope import Hope, HopeBlock, Memory
from tests.engine.model.recurrence import PlainTitans, attend, places, silu
from tests.tiny import (
    CONFIGURATIONS,
    MODELS,
    distance,
    initial,
    memory_distance,
    named_model,
    random_tokens,
    row_of,
    tiny_model,
)

FLOAT32, FLOAT64 = 1e-4, 1e-9


def _length(model: Hope) -> int:
    """Three full frames and an open one, with an open chunk in it."""
    return 3 * model.config.chunk_projections + 5


@torch.no_grad()
def _read_in_pieces(model: Hope, tokens_BT: Tensor, sizes: list[int], memory: Memory) -> tuple[Tensor, Memory]:
    """Logits and memory after calls of these sizes, one after another."""
    parts = []
    for piece in torch.split(tokens_BT, sizes, 1):
        logits, memory = model(piece, memory)
        parts.append(logits)
    return torch.cat(parts, 1), memory


def _even(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
@pytest.mark.parametrize("cut", ["chunk by chunk", "token by token", "across every boundary"])
def test_law_1_whole_is_any_even_cut(name: str, cut: str) -> None:
    model = named_model(name)
    total = _length(model)
    size = {"chunk by chunk": model.config.chunk_memory, "token by token": 1}.get(cut, model.config.chunk_memory + 3)
    tokens = random_tokens(model, 1, total)
    whole, whole_memory = _read_in_pieces(model, tokens, [total], initial(model))
    parts, memory = _read_in_pieces(model, tokens, _even(total, size), initial(model))
    assert distance(parts, whole) <= FLOAT32
    assert memory_distance(memory, whole_memory) <= FLOAT32


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@settings(max_examples=12)
@given(sizes=st.lists(st.integers(0, 37), min_size=1, max_size=6))
def test_law_1_whole_is_any_random_split_in_float64(decay_towards: str, sizes: list[int]) -> None:
    model = tiny_model(decay_towards=decay_towards).double()
    total = sum(sizes)
    tokens = random_tokens(model, 1, total)
    whole, whole_memory = _read_in_pieces(model, tokens, [total], initial(model))
    parts, memory = _read_in_pieces(model, tokens, sizes, initial(model))
    assert distance(parts, whole) <= FLOAT64
    assert memory_distance(memory, whole_memory) <= FLOAT64


@torch.no_grad()
def _read_ragged(model: Hope, tokens_BT: Tensor, calls: list[list[int]]) -> tuple[Tensor, Memory]:
    """Logits and memory where every call takes another number of tokens of each row, padded with anything."""
    num_rows, total = tokens_BT.shape
    logits = torch.zeros(num_rows, total, model.config.vocab_size, dtype=model.norm.gain.dtype)
    memory, read = initial(model, num_rows), [0] * num_rows
    for counts in [*calls, [total] * num_rows]:
        taken = [min(count, total - done) for count, done in zip(counts, read, strict=True)]
        padded = random_tokens(model, num_rows, max(taken) + 2, seed=99)
        for row, (done, count) in enumerate(zip(read, taken, strict=True)):
            padded[row, :count] = tokens_BT[row, done : done + count]
        out, memory = model(padded, memory, torch.tensor(taken))
        for row, (done, count) in enumerate(zip(read, taken, strict=True)):
            logits[row, done : done + count] = out[row, :count]
        read = [done + count for done, count in zip(read, taken, strict=True)]
    return logits, memory


_CALLS = st.lists(st.lists(st.integers(0, 25), min_size=3, max_size=3), max_size=4)


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@settings(max_examples=10)
@given(calls=_CALLS)
def test_law_1_whole_is_any_ragged_batch_in_float64(decay_towards: str, calls: list[list[int]]) -> None:
    model = tiny_model(decay_towards=decay_towards).double()
    tokens = random_tokens(model, 3, 45)
    logits, memory = _read_ragged(model, tokens, calls)
    for row in range(3):
        whole, whole_memory = _read_in_pieces(model, tokens[row : row + 1], [45], initial(model))
        assert distance(logits[row : row + 1], whole) <= FLOAT64
        assert memory_distance(row_of(memory, row), whole_memory) <= FLOAT64


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_1_whole_is_a_ragged_batch(name: str) -> None:
    model = named_model(name)
    chunk, total = model.config.chunk_memory, _length(model)
    tokens = random_tokens(model, 3, total)
    logits, memory = _read_ragged(model, tokens, [[1, chunk + 1, 0], [chunk - 1, 3, 2 * chunk], [5, 0, 1]])
    for row in range(3):
        whole, whole_memory = _read_in_pieces(model, tokens[row : row + 1], [total], initial(model))
        assert distance(logits[row : row + 1], whole) <= FLOAT32
        assert memory_distance(row_of(memory, row), whole_memory) <= FLOAT32


@torch.no_grad()
def _plain_run(model: Hope, tokens_T: Tensor) -> tuple[Tensor, list[PlainTitans]]:
    """Logits [T,V] of the whole model by the recurrence, and its layers' memories."""
    x_TD = model.embedding.weight[tokens_T] * model.config.width**0.5
    layers = []
    for block in model.blocks:
        assert isinstance(block, HopeBlock)
        if model.config.mixer == ATTENTION:
            x_TD = x_TD + attend(block.attention, x_TD)
        else:
            layers.append(PlainTitans(block.titans))
            x_TD = x_TD + layers[-1].run(x_TD)
        start_TD = x_TD
        for number, level in enumerate(block.levels):
            assert isinstance(level, ContinuumBlock)
            independent = model.config.chain == "independent"
            read_TD = start_TD if independent else x_TD
            share = torch.softmax(block.scores, 0)[number] if block.scores is not None else 1.0
            x_TD = x_TD + share * (silu(_normed(read_TD, level.norm.gain) @ level.w2.T) @ level.w1.T)
    return functional.linear(_normed(x_TD, model.norm.gain), model.embedding.weight), layers


def _normed(x_TD: Tensor, gain: Tensor) -> Tensor:
    return x_TD / (x_TD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_1_the_whole_model_is_the_plain_recurrence_in_float64(name: str) -> None:
    model = copy.deepcopy(named_model(name)).double()
    total = model.config.chunk_projections + 9
    tokens = random_tokens(model, 1, total)
    logits, memory = _read_in_pieces(model, tokens, [total], initial(model))
    expected, layers = _plain_run(model, tokens[0])
    assert distance(logits[0], expected) <= FLOAT64
    for index, layer in enumerate(layers):
        for head, memories in enumerate(layer.heads):
            for part, (stack, at) in places(model.config).items():
                fixed, settled = memories[part].fixed, memories[part].boundary
                for number, matrix in enumerate(("w2", "w1")):
                    found = memory[f"titans.{index}.{stack}.{matrix}"][0, head, at] + fixed[number]
                    assert distance(found, settled[number]) <= FLOAT64

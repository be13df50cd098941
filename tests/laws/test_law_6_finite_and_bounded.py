"""Law 6. Memory stays finite and bounded over 100,000 tokens of anything, random bytes included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.model.hope import Hope, HopeBlock, Memory
from tests.tiny import CONFIGURATIONS, MODELS, initial, named_model, random_tokens, tiny_model

NUM_TOKENS, CALL = 100_000, 4_000


def _texts(model: Hope, num_tokens: int, seed: int) -> Tensor:
    """Three rows: anything at all, one token for ever, and two tokens in turn."""
    tokens = random_tokens(model, 3, num_tokens, seed)
    tokens[1] = 9
    tokens[2, ::2], tokens[2, 1::2] = 10, 11
    return tokens


def _assert_bounded(model: Hope, memory: Memory, logits: Tensor) -> None:
    assert bool(torch.isfinite(logits).all())
    # Every weight matrix lies in its ball, so what memories say is bounded whatever comes next.
    for name, value in memory.items():
        assert bool(torch.isfinite(value.double()).all()), name
        if name.startswith("titans") and name.endswith(("w1", "w2", "s1", "s2")):
            norms = value.double().square().sum((-2, -1)).sqrt()
            assert float(norms.max()) <= model.config.max_drift * (1 + 1e-5), name


@torch.no_grad()
def _read(model: Hope, num_tokens: int) -> None:
    memory = initial(model, 3)
    for call, start in enumerate(range(0, num_tokens, CALL)):
        logits, memory = model(_texts(model, min(CALL, num_tokens - start), call), memory)
        _assert_bounded(model, memory, logits[:, -1])
    assert memory["position"].tolist() == [num_tokens] * 3


def test_law_6_a_hundred_thousand_tokens() -> None:
    _read(tiny_model(chunk_memory=64, chunk_projections=64), NUM_TOKENS)


@pytest.mark.parametrize("decay_towards", ["initial", "zero"])
@pytest.mark.parametrize("max_drift", [4.0, 64.0])
def test_law_6_the_hardest_writes_that_forget_nothing(decay_towards: str, max_drift: float) -> None:
    # Step sizes at their ceiling and retention at one: what a trained model could come to at its worst.
    _read(_hardest(decay_towards=decay_towards, max_drift=max_drift), 4_000)


@pytest.mark.parametrize("name", ["gradient", "dot", "dot by gradient", "momentum"])
def test_law_6_the_hardest_writes_by_every_rule(name: str) -> None:
    # The dot product writes on whatever is there already: nothing but the bound holds it.
    _read(_hardest(**CONFIGURATIONS[name]), 4_000)


def _hardest(**changes: Any) -> Hope:
    model = tiny_model(**changes)
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, HopeBlock)
            block.titans.eta_bias.fill_(30.0)
            block.titans.alpha_bias.fill_(30.0)
            for parameter in block.titans.initial.parameters():
                parameter.mul_(4)
    return model


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_6_a_few_thousand_tokens_of_every_model(name: str) -> None:
    _read(named_model(name), 4_000)

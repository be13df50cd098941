"""Law 5. The loss has a non-zero gradient to the initial state of all five memories and every CMS level."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from engine.model.hope import Hope, HopeBlock
from tests.engine.model.recurrence import places
from tests.tiny import CONFIGURATIONS, MODELS, named_model, random_tokens


def _model_with_gradients(name: str) -> Hope:
    model = copy.deepcopy(named_model(name))
    # M_k, M_v, M_eta and M_alpha matter through what they write: the text must go on after their first update, and
    # the share of it that momentum carries on shows after the second.
    num_chunks = 2 if model.config.momentum else 1
    tokens = random_tokens(model, 2, num_chunks * model.config.chunk_projections + model.config.chunk_memory)
    logits, _ = model(tokens, model.initial_memory(2))
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize("name", [name for name in (*MODELS, *CONFIGURATIONS) if name != "attention"])
def test_law_5_every_initial_state_has_a_gradient(name: str) -> None:
    model = _model_with_gradients(name)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, HopeBlock)
        parameters = dict(block.titans.initial.named_parameters())
        for memory, (stack, at) in places(model.config).items():
            for part in ("w2", "w1"):
                gradient = parameters[f"{stack}.{part}"].grad
                assert gradient is not None
                norms = gradient[:, at].flatten(1).norm(dim=1)
                assert bool((norms > 0).all()), f"layer {index}, {memory}.{part}: {norms}"


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_5_every_level_of_the_chain_has_a_gradient(name: str) -> None:
    model = _model_with_gradients(name)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, HopeBlock)
        for level, config in zip(block.levels, model.config.levels, strict=True):
            for part, parameter in level.named_parameters():
                assert parameter.grad is not None
                assert float(parameter.grad.norm()) > 0, f"layer {index}, {config.name}.{part}"


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_5_no_parameter_of_the_model_is_left_out(name: str) -> None:
    model = _model_with_gradients(name)
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert idle == []


def test_law_5_the_gradient_runs_through_writes_over_many_chunks() -> None:
    # The first token's embedding moves the last token's loss long after the convolutions have forgotten it.
    model = copy.deepcopy(named_model("initial"))
    tokens = random_tokens(model, 1, 4 * model.config.chunk_projections)
    tokens[0, 0] = 1
    tokens[0, 1:] = tokens[0, 1:].clamp_min(2)
    logits, _ = model(tokens, model.initial_memory(1))
    loss = functional.cross_entropy(logits[0, -1:], tokens[0, -1:])
    (gradient,) = torch.autograd.grad(loss, model.embedding.weight)
    # The tied embedding also speaks: compare with what it gets when the first token is another one.
    other = tokens.clone()
    other[0, 0] = 2
    logits, _ = model(other, model.initial_memory(1))
    (without,) = torch.autograd.grad(functional.cross_entropy(logits[0, -1:], tokens[0, -1:]), model.embedding.weight)
    assert float((gradient[1] - without[1]).norm()) > 1e-7

"""Law 4. Causality: no logit depends on a later token."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import CONFIGURATIONS, MODELS, initial, named_model, random_tokens


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_4_a_later_token_changes_no_earlier_logit(name: str) -> None:
    model = named_model(name)
    chunk = model.config.chunk_memory
    total = model.config.chunk_projections + chunk + 3
    tokens = random_tokens(model, 1, total)
    with torch.no_grad():
        logits, _ = model(tokens, initial(model))
        # Within a chunk, at its end, at its start, and the last of all.
        for place in (1, chunk - 2, chunk - 1, chunk, chunk + 1, model.config.chunk_projections, total - 1):
            changed = tokens.clone()
            changed[0, place] = (tokens[0, place] + 1) % model.config.vocab_size
            others, _ = model(changed, initial(model))
            assert torch.equal(others[0, :place], logits[0, :place]), place
            # The token itself is read by then: what follows it does change.
            assert not torch.allclose(others[0, place], logits[0, place]), place


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_4_no_gradient_flows_from_a_logit_to_a_later_token(name: str) -> None:
    model = named_model(name)
    total = model.config.chunk_projections + 4
    tokens = random_tokens(model, 1, total)
    place = model.config.chunk_memory + 1
    embedded: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().clone().requires_grad_())
        return embedded[0]

    hook = model.embedding.register_forward_hook(keep)
    try:
        hidden, _ = model.hidden(tokens, initial(model))
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(hidden[0, place].square().sum() + hidden[0, place, 0], embedded[0])
    assert not gradient[0, place + 1 :].any()
    assert bool(gradient[0, : place + 1].any(-1).all())


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_4_padding_changes_no_logit_and_no_memory(name: str) -> None:
    model = named_model(name)
    chunk = model.config.chunk_memory
    lengths = torch.tensor([chunk + 2, 3])
    tokens = random_tokens(model, 2, 2 * chunk)
    other = tokens.clone()
    for row, length in enumerate(lengths.tolist()):
        other[row, length:] = (other[row, length:] + 7) % model.config.vocab_size
    with torch.no_grad():
        logits, memory = model(tokens, initial(model, 2), lengths)
        padded_otherwise, memory_otherwise = model(other, initial(model, 2), lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(logits[row, :length], padded_otherwise[row, :length])
    for key, value in memory.items():
        assert torch.equal(value, memory_otherwise[key]), key

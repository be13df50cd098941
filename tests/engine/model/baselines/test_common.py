"""What every baseline shares: its memory, its gradients, and a model of a wanted size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.model.baselines import BASELINES
from engine.model.baselines.common import decay_within, fit_hidden, in_chunks, spread_time_steps, usual_hidden
from engine.model.hope import POSITION
from tests.engine.model.baselines.models import LENGTH, NAMES, VOCAB, WINDOW, fresh, read, some_tokens, tiny
from tests.tiny import same_bits


def test_the_names_are_those_that_are_tested() -> None:
    assert tuple(BASELINES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_named_tensors_batch_first(name: str) -> None:
    model = tiny(name)
    memory = model.initial_memory(3, levels=False)
    assert memory.keys() == model.initial_memory(3).keys()
    for part, value in memory.items():
        assert value.shape[0] == 3
        assert value.dtype == (torch.int64 if part == POSITION else torch.float32), part
        assert not value.any()
    _, after = read(model, some_tokens(3, 5), [5], memory)
    assert after.keys() == memory.keys()
    assert after[POSITION].tolist() == [5, 5, 5]


@pytest.mark.parametrize("name", NAMES)
def test_reading_does_not_change_the_memory_it_was_given(name: str) -> None:
    model = tiny(name)
    _, memory = read(model, some_tokens(2, LENGTH), [LENGTH])
    kept = {part: value.clone() for part, value in memory.items()}
    _, after = read(model, some_tokens(2, 9, seed=2), [9], memory)
    assert same_bits(memory, kept)
    assert not same_bits(after, kept)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_read_changes_what_is_said(name: str) -> None:
    model, asked = tiny(name), some_tokens(1, 4)
    said = []
    for seed in (1, 2):
        _, memory = read(model, some_tokens(1, WINDOW - 4, seed), [WINDOW - 4])
        said.append(read(model, asked, [4], memory)[0])
    assert (said[0][:, -1] - said[1][:, -1]).abs().max() > 1e-3 * said[0].std()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(1)
    model, tokens = fresh(name), some_tokens(2, LENGTH)
    logits, _ = model(tokens[:, :-1], model.initial_memory(2))
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    named = dict(model.named_parameters())
    for part, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        assert bool(gradient.isfinite().all()), part
        # Every row of every tensor: no head and no channel is cut off.
        assert bool(gradient.flatten(1).any(1).all() if gradient.ndim > 1 else gradient.all()), part


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_through_the_memory(name: str) -> None:
    model, tokens = tiny(name, double=True), some_tokens(1, LENGTH)
    logits, _ = model(tokens, model.initial_memory(1))
    parameters = list(model.parameters())
    whole = torch.autograd.grad(logits.square().sum(), parameters)
    first, memory = model(tokens[:, :20], model.initial_memory(1))
    second, _ = model(tokens[:, 20:], memory)
    parts = torch.autograd.grad(first.square().sum() + second.square().sum(), parameters)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "num_parameters"), [((4096, 128, 4, 2), 1_458_704), ((VOCAB, 32, 3, 2), 60_000)])
def test_a_model_of_a_wanted_size(name: str, shape: tuple[int, int, int, int], num_parameters: int) -> None:
    model = BASELINES[name](*shape, num_parameters=num_parameters)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert abs(found - num_parameters) <= 0.01 * num_parameters
    # As near as can be: one more or one less would be further off.
    step = 3 * shape[1] * shape[2]
    assert abs(found - num_parameters) <= step / 2
    assert {str(parameter.device) for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", NAMES)
def test_a_size_out_of_reach_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="the nearest model has"):
        BASELINES[name](4096, 128, 4, 2, num_parameters=600_000)
    with pytest.raises(InvalidRequest, match="multiple of num_heads"):
        BASELINES[name](VOCAB, 30, 2, 4)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_wanted_size_the_hidden_size_is_llamas(name: str) -> None:
    model = BASELINES[name](VOCAB, 96, 2, 2)
    assert [p.shape for n, p in model.named_parameters() if n.endswith("feed.up.weight")] == [(256, 96)] * 2
    assert usual_hidden(128) == 344


def test_the_search_works_for_any_module_and_allocates_nothing() -> None:
    devices: set[str] = set()

    def make(hidden: int) -> nn.Module:
        module = nn.Sequential(nn.Linear(hidden, hidden, bias=False), nn.Linear(1, 10))
        devices.update(str(parameter.device) for parameter in module.parameters())
        return module

    assert [fit_hidden(make, 20 + wanted) for wanted in (1, 4, 99**2, 10**12)] == [1, 2, 99, 10**6]
    assert devices == {"meta"}
    with pytest.raises(InvalidRequest, match="the nearest model has 21"):
        fit_hidden(make, 19)
    with pytest.raises(InvalidRequest, match="does not change"):
        fit_hidden(lambda _hidden: nn.Linear(3, 3), 10**6)


def test_chunks_are_filled_up_with_zeros() -> None:
    x = torch.arange(1, 11).view(1, 5, 2)
    assert in_chunks(x, 1, 5).tolist() == [x.tolist()]
    assert in_chunks(x, 1, 3).tolist() == [[[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [0, 0]]]]
    assert in_chunks(x, -1, 3)[0, 0].tolist() == [[1, 2, 0]]


def test_the_decay_between_two_tokens_is_the_product_of_those_after_the_first() -> None:
    decay = torch.tensor([0.5, 0.25, 0.1], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.25, 1.0, 0.0], [0.025, 0.1, 1.0]], dtype=torch.float64)
    assert torch.allclose(decay_within(decay.log().cumsum(0)), expected)


@pytest.mark.parametrize("num_heads", [1, 2, 16])
def test_time_steps_start_in_the_published_range(num_heads: int) -> None:
    decay_log, step_bias = spread_time_steps(num_heads)
    step = functional.softplus(step_bias)
    assert decay_log.shape == step.shape == (num_heads,)
    assert bool(((decay_log.exp() >= 1) & (decay_log.exp() <= 16)).all())
    assert bool(((step >= 0.001) & (step <= 0.1)).all())
    assert float(step.log().mean()) == pytest.approx(-4.6052, abs=1e-3), "the middle of the range, in logs"

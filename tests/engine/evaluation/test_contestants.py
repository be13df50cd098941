"""Every contestant is built at the wanted size, reads, and learns; a name that is nobody's is refused with the list."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.config import ModelConfig
from engine.errors import InvalidRequest
from engine.evaluation.contestants import CONTESTANTS, Shape, build, num_parameters
from engine.evaluation.fitting import loss
from engine.model.hope import Hope
from tests.engine.evaluation.copying import Copying

SHAPE = Shape(Copying.vocab_size, width=32, num_layers=2, num_heads=2, chunk=8)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, SHAPE)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_all_have_as_many_parameters_as_hope(name: str) -> None:
    assert num_parameters(built(name)) == pytest.approx(num_parameters(built("hope")), rel=0.01)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_all_read_and_learn(name: str) -> None:
    model = built(name)
    examples = Copying().training(0, 0)
    found = loss(model, examples)
    assert 0.5 < float(found.detach()) < 20
    found.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_wanted_size_is_met() -> None:
    for name in CONTESTANTS:
        shape = Shape(64, width=32, num_layers=2, num_heads=2, chunk=8, num_parameters=60_000)
        assert num_parameters(build(name, shape)) == pytest.approx(60_000, rel=0.01), name


def test_an_ablation_is_hope_with_a_part_changed_at_the_same_size() -> None:
    whole, without = build("hope", SHAPE), build("hope", SHAPE, adaptive=("eta", "alpha"), momentum=True)
    assert isinstance(without, Hope)
    assert (without.config.adaptive, without.config.momentum) == (("eta", "alpha"), True)
    assert num_parameters(without) == pytest.approx(num_parameters(whole), rel=0.01)


def test_titans_has_no_levels_that_learn_and_nothing_adaptive() -> None:
    titans = built("titans")
    assert isinstance(titans, Hope)
    config: ModelConfig = titans.config
    assert (config.adaptive, config.write_rule, config.momentum) == ((), "gradient", True)
    assert [level.scope for level in config.levels] == ["training"]


@pytest.mark.parametrize(("name", "changes"), [("nobody", {}), ("transformer", {"momentum": True})])
def test_who_cannot_be_built_is_refused_with_the_names(name: str, changes: dict[str, bool]) -> None:
    with pytest.raises(InvalidRequest, match="hope, hope-attention, titans, transformer"):
        build(name, SHAPE, **changes)

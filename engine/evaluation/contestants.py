"""Who is compared: Hope in its forms, and other people's models, each built at a wanted number of parameters.

To add one, write `build(vocab_size, width, num_layers, num_heads, num_parameters)` in a file and name the file in
`--models` (docs/EXTENDING.md); one in `engine/model/baselines/` stands in every table. Knows no tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from engine.config import ATTENTION, CMS_FAST, CMS_MEDIUM, CMS_SLOW, LevelConfig, ModelConfig
from engine.errors import InvalidRequest
from engine.from_file import function_of, is_file
from engine.model.baselines import BASELINES
from engine.model.baselines.common import fit_hidden
from engine.model.hope import Hope

# Titans' LMM (arXiv 2501.00663): static projections, gradient descent with momentum and forgetting, no CMS.
TITANS_LMM: dict[str, Any] = {"adaptive": (), "write_rule": "gradient", "momentum": True}
# Hope as the tables have it turns around what it wrote, which some of their tasks take; the shipped one does not.
HOPES: dict[str, dict[str, Any]] = {
    "hope": {"largest_step": 2.0},
    "hope-attention": {"mixer": ATTENTION},
    "titans": TITANS_LMM,
}
CONTESTANTS = (*HOPES, *BASELINES)


@dataclass(frozen=True)
class Shape:
    """What all contestants of a table share; `num_parameters` None takes what Hope comes to.

    Attributes:
        chunk: tokens between two updates of Hope's and Titans' memories.
    """

    vocab_size: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    chunk: int = 32
    num_parameters: int | None = None


def build(name: str, shape: Shape, **changes: Any) -> nn.Module:
    """A contestant, freshly initialised, within 1 % of the wanted number of parameters.

    Args:
        changes: fields of `ModelConfig` in place of a Hope's own (ablations); not for other people's models.

    Raises:
        InvalidRequest: nobody has this name, or it cannot be built at this size.
    """
    if name in HOPES:
        return _hope({**HOPES[name], **changes}, shape)
    builder: Callable[..., nn.Module] | None = function_of(name, "build") if is_file(name) else BASELINES.get(name)
    if builder is None or changes:
        raise InvalidRequest(f"'{name}' is none of {', '.join(CONTESTANTS)}, nor a FILE.py", param="models")
    size = shape.num_parameters or num_parameters(_hope(HOPES["hope"], shape))
    return builder(shape.vocab_size, shape.width, shape.num_layers, shape.num_heads, size)


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def _hope(changes: dict[str, Any], shape: Shape) -> Hope:
    """A Hope whose slowest block is as wide as makes the size fit; Titans has that block only."""
    default = _config(shape, shape.width * 2)
    size = shape.num_parameters or num_parameters(Hope(default))

    def make(hidden: int) -> Hope:
        config = _config(shape, hidden)
        if "levels" not in changes and changes.get("write_rule") == "gradient" and not changes.get("adaptive", True):
            config = replace(config, levels=(LevelConfig("cms.fixed", hidden, "training"),))
        return Hope(replace(config, **changes))

    return make(fit_hidden(make, size))


def _config(shape: Shape, hidden: int) -> ModelConfig:
    head = shape.width // shape.num_heads
    return ModelConfig(
        vocab_size=shape.vocab_size,
        width=shape.width,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        memory_hidden=head,
        projection_hidden=max(8, head // 2),
        chunk_memory=shape.chunk,
        chunk_projections=shape.chunk,
        levels=(
            LevelConfig(CMS_FAST, shape.width // 2, "session", 1.0),
            LevelConfig(CMS_MEDIUM, shape.width // 2, "session", 0.1),
            LevelConfig(CMS_SLOW, hidden, "tenant", 0.0),
        ),
    )

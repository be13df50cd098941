"""Models small enough to try a law on in a moment, and the shipped checkpoint where the package holds one.

Knows the model and its checkpoints; no engine, no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.config import ATTENTION, BEFORE, CMS_FAST, CMS_MEDIUM, CMS_SLOW, LevelConfig, ModelConfig
from engine.model.hope import POSITION, Hope, HopeBlock, Memory
from engine.model.weights import WEIGHTS_FILE, bundled_checkpoint, load_checkpoint, save_checkpoint
from engine.tokenizer import NUM_SPECIAL, Tokenizer

CHUNK_MEMORY, CHUNK_PROJECTIONS = 8, 16
SHIPPED = (bundled_checkpoint() / WEIGHTS_FILE).is_file()
# Names that `named_model` knows; the shipped one is among them as soon as the package holds it.
MODELS = ("initial", "zero", *(("shipped",) if SHIPPED else ()))
FIVE_LEVELS = (
    *(LevelConfig(f"cms.level_{number}", 6, "session", 0.5, period_tokens=8 * 2**number) for number in range(3)),
    LevelConfig(CMS_SLOW, 10, "tenant"),
    LevelConfig("cms.fixed", 12, "training"),
)
# The parts of the paper behind configuration: one shape for every value that is not the default, and some together.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "dgd of the first layer": {"write_rule": "dgd"},
    "heads apart": {"head_mixing": "none"},
    "heads mixed by a Linear": {"head_mixing": "linear"},
    "steps up to 2": {"largest_step": 2.0},
    "gradient": {"write_rule": "gradient"},
    "dot": {"objective": "dot"},
    "dot by gradient": {"write_rule": "gradient", "objective": "dot"},
    "static": {"adaptive": ()},
    "adaptive values": {"adaptive": ("value",)},
    "adaptive rates": {"adaptive": ("eta", "alpha")},
    "static queries": {"adaptive": BEFORE["adaptive"]},
    "momentum": {"momentum": True},
    "never forgets": {"retention": False},
    "boundary read": {"read": "boundary"},
    "nested": {"chain": "nested"},
    "independent": {"chain": "independent"},
    "no levels": {"levels": ()},
    "five levels": {"levels": FIVE_LEVELS},
    "attention": {"mixer": ATTENTION},
}

SENTENCES = (
    "My dog is called Rex and he likes the river.",
    "What is the name of my dog? Your dog is called Rex.",
    "The train leaves at 17:45, I think, so do not be late.",
    "Zürich is lovely in spring, said the owl to the fox.",
)


def tiny_config(**changes: Any) -> ModelConfig:
    """Width 32, two layers, two heads; chunks of 8 and 16 tokens."""
    levels = (
        LevelConfig(CMS_FAST, 16, "session", 0.5),
        LevelConfig(CMS_MEDIUM, 16, "session", 0.5),
        LevelConfig(CMS_SLOW, 24, "tenant", 0.0),
    )
    config = ModelConfig(
        vocab_size=64,
        width=32,
        num_layers=2,
        num_heads=2,
        memory_hidden=12,
        projection_hidden=8,
        rate_hidden=4,
        chunk_memory=CHUNK_MEMORY,
        chunk_projections=CHUNK_PROJECTIONS,
        levels=levels,
    )
    return replace(config, **changes)


def tiny_model(seed: int = 0, *, writes_hard: bool = True, **changes: Any) -> Hope:
    """An untrained model. Its memories write hard, so that a law broken by a write shows; or softly, where what a
    write does is hardly more than its rounding and rounding does not grow over a few turns."""
    torch.manual_seed(seed)
    model = Hope(tiny_config(**changes)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(10)
        for block in model.blocks:
            assert isinstance(block, HopeBlock)
            if model.config.mixer == ATTENTION:
                continue
            if not writes_hard:
                block.titans.eta_bias.copy_(torch.linspace(-3.5, -1.5, model.config.num_heads))
                if model.config.retention:
                    block.titans.alpha_bias.copy_(torch.linspace(4.5, 7.5, model.config.num_heads))
                continue
            block.titans.eta_bias.copy_(torch.linspace(-0.5, 0.5, model.config.num_heads))
            if model.config.retention:
                block.titans.alpha_bias.copy_(torch.linspace(1.5, 3.0, model.config.num_heads))
            for parameter in block.titans.initial.parameters():
                parameter.mul_(2)
    return model


@cache
def named_model(name: str) -> Hope:
    """One of `MODELS` or `CONFIGURATIONS`; not to be changed."""
    if name == "shipped":
        return load_checkpoint()[0]
    if name in CONFIGURATIONS:
        return tiny_model(**CONFIGURATIONS[name])
    return tiny_model(decay_towards=name)


@cache
def tiny_tokenizer() -> Tokenizer:
    """All bytes and a few merges."""
    return Tokenizer.train(SENTENCES * 4, NUM_SPECIAL + 256 + 48)


def write_tiny_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint of an untrained tiny model; returns its folder."""
    tokenizer = tiny_tokenizer()
    save_checkpoint(folder, tiny_model(seed, vocab_size=tokenizer.vocab_size, **changes), tokenizer)
    return folder


def random_tokens(model: Hope, num_rows: int, num_tokens: int, seed: int = 0) -> Tensor:
    """Token ids [B,T] of anything."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (num_rows, num_tokens), generator=generator)


def initial(model: Hope, num_rows: int = 1) -> Memory:
    """Memory that has read nothing, off the autograd graph."""
    with torch.no_grad():
        return {name: value.clone() for name, value in model.initial_memory(num_rows).items()}


def row_of(memory: Memory, row: int) -> Memory:
    """One row of a batch's memory, batch size 1; of attention only what the row itself has read."""
    read = int(memory[POSITION][row])
    return {
        name: value[row : row + 1, :, :read] if name.startswith(ATTENTION) else value[row : row + 1]
        for name, value in memory.items()
    }


def stacked(rows: Sequence[Memory]) -> Memory:
    """The rows' memories as one batch; attention has as many slots as the longest row needs."""
    most = max(int(row[POSITION]) for row in rows)
    return {
        name: torch.cat(
            [
                pad(row[name], (0, 0, 0, most - row[name].shape[2])) if name.startswith(ATTENTION) else row[name]
                for row in rows
            ]
        )
        for name in rows[0]
    }


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected (at least 1e-3)."""
    found, expected = found.detach(), expected.detach()
    difference = torch.linalg.vector_norm((found - expected).double())
    return float(difference / torch.linalg.vector_norm(expected.double()).clamp_min(1e-3))


def memory_distance(found: Memory, expected: Memory) -> float:
    """The largest `distance` over the tensors of a memory; counters must be equal."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(found[name], value), name
    return max(distance(found[n], v) for n, v in expected.items() if v.is_floating_point())


def same_bits(found: Memory, expected: Memory) -> bool:
    """Whether two memories are equal bit for bit."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(_bytes(found[name]), _bytes(value))
        for name, value in expected.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

"""Models small enough to try a law on in a moment, and the shipped checkpoint where the package holds one.

Knows the model and its checkpoints; no engine, no store.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW, LevelConfig, ModelConfig
from engine.model.hope import Hope, HopeBlock, Memory
from engine.model.weights import WEIGHTS_FILE, bundled_checkpoint, load_checkpoint, save_checkpoint
from engine.tokenizer import NUM_SPECIAL, Tokenizer

CHUNK_MEMORY, CHUNK_PROJECTIONS = 8, 16
SHIPPED = (bundled_checkpoint() / WEIGHTS_FILE).is_file()
# The names that `named_model` knows; the shipped one is among them as soon as the package holds it.
MODELS = ("initial", "zero", *(("shipped",) if SHIPPED else ()))

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
    """An untrained model. Its memories write hard, so that a law broken by a write shows; or as at the start of
    a training, where what a write does is hardly more than its rounding."""
    torch.manual_seed(seed)
    model = Hope(tiny_config(**changes)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(10)
        if not writes_hard:
            return model
        for block in model.blocks:
            assert isinstance(block, HopeBlock)
            block.titans.eta_bias.copy_(torch.linspace(-0.5, 0.5, model.config.num_heads))
            block.titans.alpha_bias.copy_(torch.linspace(1.5, 3.0, model.config.num_heads))
            for parameter in block.titans.initial.parameters():
                parameter.mul_(2)
    return model


@cache
def named_model(name: str) -> Hope:
    """One of `MODELS`; not to be changed."""
    if name == "shipped":
        return load_checkpoint()[0]
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
    """One row of a batch's memory, batch size 1."""
    return {name: value[row : row + 1] for name, value in memory.items()}


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

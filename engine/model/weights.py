"""Checkpoints: a folder with `model.safetensors` (weights, and the model's shape in its header) and `tokenizer.json`.

The fingerprint is a hash of shape and weights: a memory belongs to the model it grew in, and to no other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.config import BEFORE, LevelConfig, ModelConfig
from engine.errors import InvalidRequest
from engine.model.hope import Hope
from engine.tokenizer import Tokenizer

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
FORMAT = "hope-checkpoint-1"


def bundled_checkpoint() -> Path:
    """Folder of the checkpoint that ships with the package."""
    return Path(str(files("engine") / "checkpoint"))


def save_checkpoint(folder: Path, model: Hope, tokenizer: Tokenizer, notes: dict[str, str] | None = None) -> None:
    """Writes weights and tokenizer; `notes` go into the header (tokens seen, command, ...)."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(model.config)), **(notes or {})}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(tensors, partial, metadata=header)
    partial.chmod(0o644)  # safetensors makes it the owner's alone
    partial.replace(folder / WEIGHTS_FILE)
    tokenizer.save(folder / TOKENIZER_FILE)


def load_checkpoint(folder: Path | None = None, device: str = "cpu") -> tuple[Hope, Tokenizer]:
    """Model (float32, evaluation mode) and tokenizer of a checkpoint folder; the bundled one by default.

    Raises:
        InvalidRequest: the folder holds no checkpoint of this format, or another model's tokenizer.
    """
    folder = folder or bundled_checkpoint()
    model = Hope(checkpoint_config(folder)).to(device)
    with safe_open(folder / WEIGHTS_FILE, framework="pt", device=device) as file:
        model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise InvalidRequest(
            f"the tokenizer in '{folder}' has {tokenizer.vocab_size} entries, the model {model.config.vocab_size}: "
            "they belong to different checkpoints",
            param="checkpoint",
        )
    return model.eval(), tokenizer


def checkpoint_config(folder: Path) -> ModelConfig:
    """The shape of the model in a checkpoint folder; the weights are not read.

    Raises:
        InvalidRequest: the folder holds no checkpoint of this format.
    """
    return parse_config(_header(folder)["config"])


def _header(folder: Path) -> dict[str, str]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InvalidRequest(f"no checkpoint in '{folder}': expected a file {WEIGHTS_FILE}", param="checkpoint")
    with safe_open(path, framework="pt") as file:
        header: dict[str, str] = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise InvalidRequest(f"'{path}' is not in format {FORMAT}", param="checkpoint")
    return header


def checkpoint_notes(folder: Path) -> dict[str, str]:
    """What `save_checkpoint` was told beside the weights: how the model came about."""
    return {name: text for name, text in _header(folder).items() if name not in ("format", "config")}


def parse_config(text: str) -> ModelConfig:
    """A `ModelConfig` from its JSON; what an older one does not say is as it was then."""
    given = json.loads(text)
    levels = tuple(LevelConfig(**_completed(LevelConfig, level)) for level in given.pop("levels"))
    return ModelConfig(**_completed(ModelConfig, given), levels=levels)


def _completed(kind: type[LevelConfig | ModelConfig], given: dict[str, Any]) -> dict[str, Any]:
    known = {one.name for one in dataclasses.fields(kind)}
    return {name: value for name, value in BEFORE.items() if name in known} | given


def fingerprint(model: Hope) -> str:
    """16 hex digits that change with the shape or any weight."""
    digest = hashlib.sha256(json.dumps(model.config.identity()).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

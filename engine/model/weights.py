"""Checkpoints: a folder with `model.safetensors` (weights, and the model's shape in its header) and `tokenizer.json`.

A baseline's has the same form and another format, so that no server takes it for a Hope.
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
from torch import Tensor

from engine.config import BEFORE, LevelConfig, ModelConfig
from engine.errors import InvalidRequest
from engine.model.baselines import build_baseline
from engine.model.baselines.common import Baseline, BaselineConfig
from engine.model.hope import Hope
from engine.tokenizer import Tokenizer

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
FORMAT, BASELINE_FORMAT = "hope-checkpoint-1", "baseline-checkpoint-1"


def bundled_checkpoint() -> Path:
    """Folder of the checkpoint that ships with the package."""
    return Path(str(files("engine") / "checkpoint"))


def save_checkpoint(
    folder: Path,
    model: Hope | Baseline,
    tokenizer: Tokenizer,
    notes: dict[str, str] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Writes weights and tokenizer.

    Args:
        notes: go into the header (tokens seen, command, ...).
        weights: in place of the model's own, where those lie in pieces.

    Raises:
        InvalidRequest: a baseline that does not know what it was built from.
    """
    kind, config = (FORMAT, model.config) if isinstance(model, Hope) else (BASELINE_FORMAT, model.built_from)
    if config is None:
        raise InvalidRequest("only a baseline made by `build_baseline` can be saved", param="model")
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": kind, "config": json.dumps(dataclasses.asdict(config)), **(notes or {})}
    tensors = {name: value.detach().cpu().contiguous() for name, value in (weights or model.state_dict()).items()}
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
    model = Hope(checkpoint_config(folder))
    return model, _fill(model, folder, device)


def load_contestant(folder: Path | None = None) -> tuple[Hope | Baseline, Tokenizer]:
    """As `load_checkpoint`, of a Hope or of a baseline.

    Raises:
        InvalidRequest: the folder holds no checkpoint, or another model's tokenizer.
    """
    folder = folder or bundled_checkpoint()
    header = _header(folder)
    if header["format"] == FORMAT:
        return load_checkpoint(folder)
    model = build_baseline(BaselineConfig(**json.loads(header["config"])))
    return model, _fill(model, folder, "cpu")


def _fill(model: Hope | Baseline, folder: Path, device: str) -> Tokenizer:
    """Gives a model the weights of a folder; returns its tokenizer."""
    with safe_open(folder / WEIGHTS_FILE, framework="pt", device=device) as file:
        model.to(device).load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    tokenizer, entries = Tokenizer.load(folder / TOKENIZER_FILE), len(model.embedding.weight)
    if tokenizer.vocab_size != entries:
        raise InvalidRequest(
            f"the tokenizer in '{folder}' has {tokenizer.vocab_size} entries, the model {entries}: "
            "they belong to different checkpoints",
            param="checkpoint",
        )
    model.eval()
    return tokenizer


def checkpoint_config(folder: Path) -> ModelConfig:
    """The shape of the Hope in a checkpoint folder; the weights are not read.

    Raises:
        InvalidRequest: the folder holds no checkpoint, or a baseline's.
    """
    header = _header(folder)
    if header["format"] != FORMAT:
        name = json.loads(header["config"])["name"]
        raise InvalidRequest(f"'{folder}' holds a '{name}'; here only a Hope will do", param="checkpoint")
    return parse_config(header["config"])


def baseline_config(folder: Path) -> BaselineConfig | None:
    """What the baseline in a checkpoint folder was built from; None where a Hope lies there.

    Raises:
        InvalidRequest: the folder holds no checkpoint.
    """
    header = _header(folder)
    return BaselineConfig(**json.loads(header["config"])) if header["format"] == BASELINE_FORMAT else None


def _header(folder: Path) -> dict[str, str]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InvalidRequest(f"no checkpoint in '{folder}': expected a file {WEIGHTS_FILE}", param="checkpoint")
    with safe_open(path, framework="pt") as file:
        header: dict[str, str] = file.metadata() or {}
    if header.get("format") not in (FORMAT, BASELINE_FORMAT):
        raise InvalidRequest(f"'{path}' is not in format {FORMAT}", param="checkpoint")
    return header


def checkpoint_digest(folder: Path) -> str:
    """Tells one checkpoint's weights from another's: 12 hex digits."""
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()[:12]


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

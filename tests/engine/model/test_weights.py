"""Checkpoints: what is written is what is read, and a fingerprint that no change escapes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.errors import InvalidRequest
from engine.model.baselines import build_baseline
from engine.model.baselines.common import Baseline, BaselineConfig
from engine.model.weights import (
    FORMAT,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    baseline_config,
    bundled_checkpoint,
    fingerprint,
    load_checkpoint,
    load_contestant,
    parse_config,
    save_checkpoint,
)
from tests.tiny import same_bits, tiny_config, tiny_model, tiny_tokenizer


def test_saved_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    model = tiny_model(seed=5, vocab_size=tiny_tokenizer().vocab_size, decay_towards="zero", max_drift=3.0)
    save_checkpoint(tmp_path / "new" / "folder", model, tiny_tokenizer(), {"tokens_seen": "12"})
    loaded, tokenizer = load_checkpoint(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert not loaded.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert tokenizer.encode("My dog is Rex") == tiny_tokenizer().encode("My dog is Rex")
    assert fingerprint(loaded) == fingerprint(model)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        WEIGHTS_FILE,
        TOKENIZER_FILE,
    ]
    with safe_open(tmp_path / "new" / "folder" / WEIGHTS_FILE, framework="pt") as file:
        assert file.metadata()["tokens_seen"] == "12"
        assert file.metadata()["format"] == FORMAT


def test_every_weight_and_the_shape_are_in_the_fingerprint() -> None:
    model = tiny_model()
    original = fingerprint(model)
    assert original == fingerprint(tiny_model())
    for name, value in model.state_dict().items():
        kept = value.clone()
        # The last bit of one number is enough.
        value.view(torch.int32).flatten()[-1] ^= 1
        assert fingerprint(model) != original, name
        value.copy_(kept)
    assert fingerprint(model) == original
    assert fingerprint(tiny_model(max_drift=3.0)) != original


def test_the_configuration_survives_json() -> None:
    config = tiny_config(decay_towards="zero")
    assert parse_config(json.dumps(dataclasses.asdict(config))) == config


def test_a_baseline_is_kept_and_is_no_hope(tmp_path: Path) -> None:
    entries = tiny_tokenizer().vocab_size
    model = build_baseline(BaselineConfig("gated-deltanet", entries, 32, 1, 2, 30_000))
    save_checkpoint(tmp_path, model, tiny_tokenizer())
    loaded, _ = load_contestant(tmp_path)
    assert isinstance(loaded, Baseline)
    assert loaded.built_from == model.built_from == baseline_config(tmp_path)
    assert same_bits(loaded.state_dict(), model.state_dict())
    with pytest.raises(InvalidRequest, match="'gated-deltanet'; here only a Hope"):
        load_checkpoint(tmp_path)
    model.built_from = None
    with pytest.raises(InvalidRequest, match="build_baseline"):
        save_checkpoint(tmp_path / "none", model, tiny_tokenizer())
    assert not (tmp_path / "none").exists()


def test_any_contestant_may_be_a_hope(tmp_path: Path) -> None:
    model = tiny_model(vocab_size=tiny_tokenizer().vocab_size)
    save_checkpoint(tmp_path, model, tiny_tokenizer())
    assert same_bits(load_contestant(tmp_path)[0].state_dict(), model.state_dict())
    assert baseline_config(tmp_path) is None


def test_nobody_builds_a_baseline_of_no_name() -> None:
    with pytest.raises(InvalidRequest, match="'lstm' is none of transformer"):
        build_baseline(BaselineConfig("lstm", 64, 32, 1, 2, 9000))


def test_a_folder_without_a_checkpoint_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=WEIGHTS_FILE):
        load_checkpoint(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / WEIGHTS_FILE, metadata={"format": "hope-checkpoint-0"})
    with pytest.raises(InvalidRequest, match=FORMAT):
        load_checkpoint(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(vocab_size=tiny_tokenizer().vocab_size + 1), tiny_tokenizer())
    with pytest.raises(InvalidRequest, match="tokenizer"):
        load_checkpoint(tmp_path)


def test_the_package_names_the_folder_of_its_own_checkpoint() -> None:
    assert bundled_checkpoint().parts[-2:] == ("engine", "checkpoint")

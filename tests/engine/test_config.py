"""A model's shape: what does not fit together is refused with the numbers and the remedy."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from engine.config import (
    BEFORE,
    CHOICES,
    CMS_FAST,
    CMS_MEDIUM,
    CMS_SLOW,
    EngineSettings,
    LevelConfig,
    ModelConfig,
    StoreSettings,
)
from engine.errors import InvalidRequest, Unsupported
from tests.tiny import tiny_config


def test_heads_share_the_width_evenly() -> None:
    assert ModelConfig(width=96, num_heads=4).head_width == 24
    with pytest.raises(InvalidRequest, match="width 96 must be a multiple of num_heads 5"):
        ModelConfig(width=96, num_heads=5)


def test_projections_are_updated_where_a_chunk_of_the_memory_ends() -> None:
    assert ModelConfig(chunk_memory=16, chunk_projections=48).chunk_projections == 48
    with pytest.raises(InvalidRequest, match="chunk_projections 40 must be a multiple of chunk_memory 16"):
        ModelConfig(chunk_memory=16, chunk_projections=40)


@pytest.mark.parametrize("towards", ["", "Initial", "one"])
def test_a_memory_decays_towards_one_of_two_states(towards: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        ModelConfig(decay_towards=towards)
    assert refusal.value.param == "decay_towards"


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_of_shape_is_one_of_a_few_and_the_first_is_the_default(name: str) -> None:
    assert getattr(ModelConfig(), name) == CHOICES[name][0]
    for choice in CHOICES[name]:
        assert getattr(tiny_config(**{name: choice}), name) == choice
    with pytest.raises(InvalidRequest, match=f"{name} is one of '{CHOICES[name][0]}'.*, not 'another'") as refusal:
        tiny_config(**{name: "another"})
    assert refusal.value.param == name


def test_what_is_adaptive_is_a_set_of_five_in_one_order() -> None:
    assert ModelConfig().adaptive == ("key", "value", "query", "eta", "alpha")
    assert ModelConfig(adaptive=("alpha", "key")) == ModelConfig(adaptive=("key", "alpha"))
    assert ModelConfig(adaptive=()).adaptive == ()
    with pytest.raises(InvalidRequest, match="adaptive is one of 'key', 'value', 'query', 'eta', 'alpha', not 'gate'"):
        ModelConfig(adaptive=("key", "gate"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "fast"}, "named 'cms.' and a word, not 'fast'"),
        ({"name": "cms.a.b"}, "not 'cms.a.b'"),
        ({"scope": "world"}, "scope is one of 'session', 'tenant', 'training', not 'world'"),
        ({"period_tokens": 1}, "period_tokens 1 of 'cms.fast' must be at least 2"),
    ],
)
def test_a_level_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        dataclasses.replace(LevelConfig(CMS_FAST, 8), **changes)


def test_two_levels_need_two_names() -> None:
    with pytest.raises(InvalidRequest, match="same name"):
        ModelConfig(levels=(LevelConfig(CMS_FAST, 8), LevelConfig(CMS_FAST, 16)))


def test_attention_turns_pairs_of_numbers() -> None:
    assert ModelConfig(width=6, num_heads=3, mixer="attention").head_width == 2
    with pytest.raises(InvalidRequest, match="head width 3 must be even"):
        ModelConfig(width=9, num_heads=3, mixer="attention")


_FIELDS = {one.name for one in dataclasses.fields(ModelConfig)}


def test_what_a_shape_is_known_by_is_what_it_was_before_there_were_choices() -> None:
    # The keys, and their order, of the first stored memories: the fingerprint hashes this text.
    model = (
        "vocab_size width num_layers num_heads memory_hidden projection_hidden rate_hidden chunk_memory "
        "chunk_projections conv_width retention_floor decay_towards max_drift levels"
    ).split()
    level = "name hidden scope learning_rate max_update_norm max_drift".split()
    known = ModelConfig(**{name: value for name, value in BEFORE.items() if name in _FIELDS}).identity()
    assert list(known) == model
    assert [list(one) for one in known["levels"]] == [level] * 3
    assert json.loads(json.dumps(known)) == known


@pytest.mark.parametrize(
    "changes",
    [
        *({name: CHOICES[name][-1]} for name in CHOICES),
        {"adaptive": ("key",)},
        {"momentum": True},
        {"largest_step": 2.0},
        {"retention": False},
        {"levels": (LevelConfig(CMS_FAST, 8, period_tokens=64),)},
    ],
    ids=str,
)
def test_another_shape_is_known_by_something_else(changes: dict[str, Any]) -> None:
    plain = tiny_config(levels=(LevelConfig(CMS_FAST, 8),))
    assert tiny_config(**({"levels": plain.levels} | changes)).identity() != plain.identity()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixer": "attention"}, "mixer 'attention' cannot be served: its state grows with the text"),
        ({"levels": ()}, "without a session level 'cms.fast' cannot be served"),
        ({"levels": (LevelConfig(CMS_FAST, 8, "training"),)}, "without a session level 'cms.fast'"),
    ],
)
def test_a_shape_that_the_engine_does_not_hold_is_refused_for_serving(changes: dict[str, Any], said: str) -> None:
    ModelConfig().check_servable()
    with pytest.raises(Unsupported, match=said):
        tiny_config(**changes).check_servable()


def test_levels_run_from_fast_to_slow_and_only_the_slowest_is_shared() -> None:
    levels = ModelConfig().levels
    assert [level.name for level in levels] == [CMS_FAST, CMS_MEDIUM, CMS_SLOW]
    assert [level.scope for level in levels] == ["session", "session", "tenant"]


@pytest.mark.parametrize("settings", [ModelConfig(), StoreSettings(), EngineSettings()], ids=lambda s: type(s).__name__)
def test_settings_do_not_change_once_they_are_read(settings: object) -> None:
    assert dataclasses.is_dataclass(settings)
    for field in dataclasses.fields(settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)

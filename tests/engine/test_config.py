"""A model's shape: what does not fit together is refused with the numbers and the remedy."""

from __future__ import annotations

import dataclasses

import pytest

from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW, EngineSettings, ModelConfig, StoreSettings
from engine.errors import InvalidRequest


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

"""A memory on its way to the store and back: at stored precision bit for bit, without what says nothing."""

from __future__ import annotations

import pytest
import torch

from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW, TITANS
from engine.model.hope import POSITION, Memory
from engine.model.portable import describe, level_of, pack_row, unpack_row
from tests.tiny import CHUNK_MEMORY, CHUNK_PROJECTIONS, CONFIGURATIONS, initial, named_model, random_tokens, same_bits

NAMES = ("initial", "zero", *(name for name in CONFIGURATIONS if name != "attention"))


def _memory(name: str, num_tokens: int) -> Memory:
    model = named_model(name)
    with torch.no_grad():
        _, memory = model(random_tokens(model, 1, num_tokens), initial(model))
    return {key: value.clone() for key, value in memory.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_tokens", [1, CHUNK_MEMORY, CHUNK_PROJECTIONS, 37])
def test_law_3_packed_and_unpacked_is_the_same_from_the_second_time_on(name: str, num_tokens: int) -> None:
    model, memory = named_model(name), _memory(name, num_tokens)
    stored = unpack_row(pack_row(memory, CHUNK_PROJECTIONS), model)
    assert stored.keys() == memory.keys()
    again = unpack_row(pack_row(stored, CHUNK_PROJECTIONS), model)
    assert same_bits(again, stored)


@pytest.mark.parametrize("name", NAMES)
def test_a_memory_of_nothing_takes_nothing_but_what_is_not_zero(name: str) -> None:
    model = named_model(name)
    packed = pack_row(initial(model), CHUNK_PROJECTIONS)
    assert bool(packed) == (name == "zero")  # there the memory starts from the initial state, not from zero
    restored = unpack_row({}, model)
    assert restored[POSITION].tolist() == [0]
    assert not restored["titans.0.open.key"].any()


@pytest.mark.parametrize("name", ["initial", "zero"])
def test_law_3_what_has_decayed_to_nothing_comes_back_as_nothing(name: str) -> None:
    # With decay towards zero a fresh memory holds the initial state: a zero that is left out must not become that.
    model, memory = named_model(name), _memory(name, 37)
    for key, value in memory.items():
        if key.endswith((".w1", ".w2")) and key.startswith("titans.0."):
            memory[key] = torch.zeros_like(value)
    assert bool(initial(model)["titans.0.memory.w1"].any()) == (name == "zero")
    stored = unpack_row(pack_row(memory, CHUNK_PROJECTIONS), model)
    for key in ("titans.0.memory.w1", "titans.0.rates.w2"):
        assert not stored[key].any()
    assert bool(stored["titans.1.memory.w1"].any())


def test_law_3_what_attention_keeps_is_stored_too() -> None:
    model, memory = named_model("attention"), _memory("attention", 37)
    stored = unpack_row(pack_row(memory, CHUNK_PROJECTIONS), model)
    assert stored["attention.1.key"].shape == (1, 2, 37, 16)
    assert same_bits(unpack_row(pack_row(stored, CHUNK_PROJECTIONS), model), stored)
    for key, value in memory.items():
        assert torch.allclose(stored[key].double(), value.double(), rtol=2**-8, atol=0), key
    # It writes no weights: the levels are those of the chain.
    assert [state.name for state in describe(stored, model)] == [CMS_FAST, CMS_MEDIUM, CMS_SLOW]


def test_floats_travel_in_two_bytes_and_open_chunks_without_empty_slots() -> None:
    memory = _memory("initial", CHUNK_PROJECTIONS + 5)
    packed = pack_row(memory, CHUNK_PROJECTIONS)
    assert {value.dtype for key, value in packed.items() if key != POSITION} == {torch.bfloat16}
    assert packed[POSITION].dtype == torch.int64
    assert packed["titans.0.open.key"].shape[1] == 5
    # Levels that have learned nothing are not there at all.
    assert not [key for key in packed if key.startswith("cms.")]
    # What is rounded is close to what was there.
    restored = unpack_row(packed, named_model("initial"))
    for key, value in memory.items():
        assert torch.allclose(restored[key].double(), value.double(), rtol=2**-8, atol=0), key


def test_every_level_is_described_with_its_clock_and_drift() -> None:
    model, memory = named_model("initial"), _memory("initial", 37)
    memory["cms.fast.0.w1"] = torch.full_like(memory["cms.fast.0.w1"], 0.5)
    memory["cms.fast.updates"] += 3
    levels = {state.name: state for state in describe(memory, model)}
    assert list(levels) == [TITANS, CMS_FAST, CMS_MEDIUM, CMS_SLOW]
    assert [levels[n].updates for n in levels] == [37 // CHUNK_MEMORY, 3, 0, 0]
    assert [levels[n].scope for n in levels] == ["session", "session", "session", "tenant"]
    size = memory["cms.fast.0.w1"].numel()
    assert levels[CMS_FAST].norm == pytest.approx(0.5 * size**0.5)
    weights = [p for n, p in model.named_parameters() if ".levels.0.w" in n]
    assert levels[CMS_FAST].parameters == sum(p.numel() for p in weights)
    start = float(torch.cat([p.detach().flatten() for p in weights]).norm())
    assert levels[CMS_FAST].drift == pytest.approx(levels[CMS_FAST].norm / start)
    assert levels[CMS_MEDIUM].norm == levels[CMS_SLOW].norm == 0.0
    assert levels[TITANS].norm > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_memory_has_drifted_nowhere(name: str) -> None:
    model = named_model(name)
    assert [state.norm for state in describe(initial(model), model)] == [0.0] * (1 + len(model.config.levels))


@pytest.mark.parametrize(
    ("tensor", "level"),
    [
        (POSITION, TITANS),
        ("titans.3.open.key", TITANS),
        ("cms.fast.0.w1", CMS_FAST),
        ("cms.medium.updates", CMS_MEDIUM),
    ],
)
def test_a_tensor_belongs_to_the_level_of_its_name(tensor: str, level: str) -> None:
    assert level_of(tensor) == level

"""The model as a function of tokens and memory: what it returns, what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from engine.config import CMS_FAST, CMS_MEDIUM, TITANS
from engine.model.hope import POSITION, Memory, rehearsal_name
from engine.model.self_modifying import CAME, PLANNED
from tests.tiny import CHUNK_PROJECTIONS, initial, named_model, random_tokens, same_bits, tiny_model

STACKS = ("memory", "projections", "rates")
OPEN = ("tail", *(f"open.{name}" for name in (*CAME, *PLANNED)))


def _read(memory: Memory, num_tokens: int, seed: int = 1) -> tuple[torch.Tensor, Memory]:
    model = named_model("initial")
    rows = memory[POSITION].shape[0]
    with torch.no_grad():
        logits, after = model(random_tokens(model, rows, num_tokens, seed), memory)
    return logits, after


def test_memory_is_named_tensors_batch_first() -> None:
    memory = initial(named_model("initial"), 3)
    titans = {f"{TITANS}.{i}.{s}.{p}" for i in range(2) for s in STACKS for p in ("w2", "w1")}
    titans |= {f"{TITANS}.{i}.{part}" for i in range(2) for part in OPEN}
    levels = {f"{n}.{i}.{p}" for n in (CMS_FAST, CMS_MEDIUM) for i in range(2) for p in ("w2", "w1")}
    others = {POSITION, f"{CMS_FAST}.updates", f"{CMS_MEDIUM}.updates", rehearsal_name(CMS_MEDIUM)}
    assert memory.keys() == titans | levels | others
    for name, value in memory.items():
        assert value.shape[0] == 3
        counter = name == POSITION or name.endswith(".updates")
        rehearsed = name == rehearsal_name(CMS_MEDIUM)
        assert value.dtype == (torch.int64 if counter else torch.int32 if rehearsed else torch.float32), name


def test_a_level_of_the_tenant_is_no_part_of_a_session_s_memory() -> None:
    assert not [name for name in initial(named_model("initial")) if "slow" in name]


def test_training_reads_without_the_levels_differences() -> None:
    model = named_model("initial")
    tokens = random_tokens(model, 2, 40)
    with torch.no_grad():
        bare, _ = model(tokens, model.initial_memory(2, levels=False))
        full, _ = model(tokens, model.initial_memory(2))
    assert torch.allclose(bare, full, atol=1e-6)


def test_reading_does_not_change_the_memory_it_was_given() -> None:
    memory = _read(initial(named_model("initial"), 2), 21)[1]
    kept = {name: value.clone() for name, value in memory.items()}
    _, after = _read(memory, 40, seed=2)
    assert same_bits(memory, kept)
    assert not torch.equal(after["titans.0.memory.w1"], kept["titans.0.memory.w1"])


def test_what_was_read_changes_what_is_said() -> None:
    fresh = initial(named_model("initial"))
    read = _read(fresh, 3 * CHUNK_PROJECTIONS)[1]
    first, _ = _read(fresh, 8, seed=5)
    second, _ = _read(read, 8, seed=5)
    assert float((first - second).abs().max()) > 1e-2


def test_the_position_counts_real_tokens() -> None:
    model, memory = named_model("initial"), initial(named_model("initial"), 3)
    with torch.no_grad():
        _, memory = model(random_tokens(model, 3, 12), memory, torch.tensor([12, 0, 5]))
        _, memory = model(random_tokens(model, 3, 4), memory)
    assert memory[POSITION].tolist() == [16, 4, 9]


@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 0])])
def test_reading_nothing_leaves_the_memory_as_it_is(lengths: torch.Tensor | None) -> None:
    model = named_model("initial")
    memory = _read(initial(model, 2), 21)[1]
    tokens = random_tokens(model, 2, 0 if lengths is None else 3)
    with torch.no_grad():
        logits, after = model(tokens, memory, lengths)
    assert logits.shape == (2, tokens.shape[1], model.config.vocab_size)
    assert same_bits(after, memory)


def test_rates_and_levels_follow_the_configuration() -> None:
    model = tiny_model(width=48, num_heads=3, num_layers=3, levels=())
    with torch.no_grad():
        logits, memory = model(random_tokens(model, 1, 20), model.initial_memory(1))
    assert bool(torch.isfinite(logits).all())
    assert not [name for name in memory if name.startswith("cms")]
    assert memory["titans.2.memory.w2"].shape == (1, 3, 1, 12, 16)

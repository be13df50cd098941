"""The levels that sessions share: in a memory like any other, and out of it again."""

from __future__ import annotations

import pytest
import torch

from engine.model.hope import Memory
from engine.model.shared import initial_shared, pack_shared, session_part, unpack_shared, with_shared
from tests.tiny import tiny_model

MODEL = tiny_model(writes_hard=False)
TOKENS = torch.randint(8, 64, (2, 20), generator=torch.Generator().manual_seed(0))


def known(size: float = 0.2) -> Memory:
    generator = torch.Generator().manual_seed(1)
    return {
        name: size * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 3
        for name, value in initial_shared(MODEL).items()
    }


def test_knowing_nothing_changes_no_bit() -> None:
    plain = MODEL.initial_memory(2)
    logits, _ = MODEL(TOKENS, plain)
    again, _ = MODEL(TOKENS, with_shared(plain, initial_shared(MODEL)))
    assert torch.equal(logits, again)


def test_what_is_known_is_heard_and_no_text_changes_it() -> None:
    plain, shared = MODEL.initial_memory(2), known()
    logits, _ = MODEL(TOKENS, plain)
    other, after = MODEL(TOKENS, with_shared(plain, shared))
    assert float((logits - other).detach().abs().max()) > 1e-3
    assert all(torch.equal(after[name], value.expand(2, *value.shape[1:])) for name, value in shared.items())


def test_a_sessions_memory_is_what_is_left_without_it() -> None:
    plain = MODEL.initial_memory(2)
    assert session_part(with_shared(plain, known()), MODEL).keys() == plain.keys()


def test_packed_and_unpacked_it_is_the_same_to_the_rounding_and_then_for_good() -> None:
    shared = known()
    once = unpack_shared(pack_shared(shared), MODEL)
    for name, value in shared.items():
        torch.testing.assert_close(once[name], value, atol=0.0, rtol=2**-8)
    twice = unpack_shared(pack_shared(once), MODEL)
    assert all(torch.equal(twice[name], value) for name, value in once.items())


def test_a_model_without_such_a_level_shares_nothing() -> None:
    assert initial_shared(tiny_model(levels=())) == {}


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_what_is_not_this_models_is_refused(damage: str) -> None:
    stored = pack_shared(known())
    name = next(name for name, value in stored.items() if value.is_floating_point())
    if damage == "missing":
        del stored[name]
    elif damage == "shape":
        stored[name] = stored[name][:-1]
    else:
        stored[name] = torch.full_like(stored[name], torch.nan)
    with pytest.raises(ValueError, match="generation"):
        unpack_shared(stored, MODEL)

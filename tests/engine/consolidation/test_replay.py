"""Replay alone: what of a turn is learned, that it is learned into `cms.medium` and nowhere else, and its guards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config import CMS_MEDIUM
from engine.consolidation.policy import ReplayPolicy
from engine.consolidation.replay import (
    Row,
    compose,
    is_finite,
    mean_surprise,
    medium_of,
    step,
    with_medium,
)
from engine.core import MemoryReport, Timing, Turn, Usage
from engine.model.hope import Hope, Memory
from engine.model.portable import level_of, pack_row
from engine.model.weights import load_checkpoint
from engine.tokenizer import ASSISTANT, END, USER, Tokenizer
from tests.engine.consolidation.samples import FACTS


@pytest.fixture
def loaded(checkpoint: Path) -> tuple[Hope, Tokenizer]:
    model, tokenizer = load_checkpoint(checkpoint)
    return model.requires_grad_(False), tokenizer


def make_turn(message: str, reply: str = "Okay.", finish_reason: str = "stop", surprise: float = 3.0) -> Turn:
    return Turn(
        id="turn-0",
        session_id="s-1",
        index=0,
        created_at="",
        message=message,
        reply=reply,
        finish_reason=finish_reason,
        usage=Usage(1, 1, 2),
        memory=MemoryReport(1, 0, True, surprise, ()),
        timing=Timing(0.0, 0.0, 0.0, 0.0),
    )


def fresh_medium(model: Hope) -> Memory:
    return medium_of({}, model)


def train(model: Hope, rows: list[Row], num_steps: int, rate: float, policy: ReplayPolicy) -> Memory:
    medium = fresh_medium(model)
    for _ in range(num_steps):
        medium, _ = step(model, medium, rows, policy, rate)
    return medium


def test_a_turn_is_read_as_it_was_and_its_frame_is_not_learned(loaded: tuple[Hope, Tokenizer]) -> None:
    _, tokenizer = loaded
    message, reply = tokenizer.encode("I am Ada."), tokenizer.encode("Hello Ada.")
    (row,) = compose([make_turn("I am Ada.", "Hello Ada.")], tokenizer, ReplayPolicy())
    assert row.tokens == (USER, *message, ASSISTANT, *reply, END)
    assert row.counts == (0.0, *[1.0] * len(message), 0.0, *[1.0] * len(reply), 1.0)
    assert row.weight == 1.0


@pytest.mark.parametrize(("reply", "finish_reason"), [("Hello A", "length"), ("", "stop")])
def test_an_end_that_was_not_spoken_is_not_learned(
    loaded: tuple[Hope, Tokenizer], reply: str, finish_reason: str
) -> None:
    (row,) = compose([make_turn("I am Ada.", reply, finish_reason)], loaded[1], ReplayPolicy())
    assert row.tokens[-1] == END
    assert row.counts[-1] == 0.0
    assert (ASSISTANT in row.tokens) == bool(reply)


def test_a_long_turn_is_cut_and_every_token_still_learned_once(loaded: tuple[Hope, Tokenizer]) -> None:
    _, tokenizer = loaded
    turns = [make_turn(" ".join(FACTS * 4)), make_turn("Short.")]
    whole = compose(turns, tokenizer, ReplayPolicy(piece_tokens=10_000))
    pieces = compose(turns, tokenizer, ReplayPolicy(piece_tokens=16))
    assert len(whole) == 2 < len(pieces)
    assert max(len(row.tokens) for row in pieces) == 16

    def learned(rows: list[Row]) -> list[int]:
        pairs = (zip(row.tokens, row.counts, strict=True) for row in rows)
        return sorted(token for row in pairs for token, counts in row if counts)

    assert learned(pieces) == learned(whole)
    assert sum(row.weight for row in pieces) == pytest.approx(1.0)


def test_the_more_surprising_turn_weighs_more(loaded: tuple[Hope, Tokenizer]) -> None:
    turns = [make_turn("Good morning to you.", surprise=1.0), make_turn("Zoë is here.", surprise=3.0)]
    weights = {len(row.tokens): row.weight for row in compose(turns, loaded[1], ReplayPolicy())}
    usual, surprising = weights[max(weights)], weights[min(weights)]
    assert surprising == pytest.approx(3 * usual)


def test_law_9_what_was_replayed_surprises_less_from_a_fresh_memory(loaded: tuple[Hope, Tokenizer]) -> None:
    model, tokenizer = loaded
    policy = ReplayPolicy()
    rows = compose([make_turn(fact) for fact in FACTS], tokenizer, policy)
    medium = train(model, rows, policy.num_steps, policy.rate(len(FACTS)), policy)
    off, on = (mean_surprise(model, m, rows, policy) for m in (fresh_medium(model), medium))
    assert on < off - 0.1
    assert int(medium[f"{CMS_MEDIUM}.updates"]) == policy.num_steps


def test_a_step_does_not_depend_on_how_rows_are_batched(loaded: tuple[Hope, Tokenizer]) -> None:
    model, tokenizer = loaded
    rows = compose([make_turn(fact) for fact in FACTS], tokenizer, ReplayPolicy())
    together = train(model, rows, 2, 5.0, ReplayPolicy(rows_per_batch=8))
    alone = train(model, rows, 2, 5.0, ReplayPolicy(rows_per_batch=1))
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)


def test_law_6_however_long_it_learns_it_stays_within_the_drift_bound(loaded: tuple[Hope, Tokenizer]) -> None:
    model, tokenizer = loaded
    rows = compose([make_turn("\x00\ufffd 🏔 zzzz" * 3, "")], tokenizer, ReplayPolicy())
    medium = train(model, rows, 40, 100.0, ReplayPolicy())
    norm = float(torch.stack([v.square().sum() for v in medium.values() if v.is_floating_point()]).sum().sqrt())
    assert is_finite(medium)
    assert 1.0 < norm <= 8.0 + 1e-3


def test_a_row_without_a_finite_gradient_is_left_out_and_the_others_learn(
    loaded: tuple[Hope, Tokenizer],
) -> None:
    model, tokenizer = loaded
    good, other = compose([make_turn(FACTS[0]), make_turn(FACTS[1])], tokenizer, ReplayPolicy())
    bad = Row(other.tokens, (0.0, float("inf"), *other.counts[2:]), other.weight)
    medium, done = step(model, fresh_medium(model), [good, bad], ReplayPolicy(), 5.0)
    alone, _ = step(model, fresh_medium(model), [good], ReplayPolicy(), 5.0)
    assert done.num_unmoved == 1
    assert is_finite(medium)
    for name, value in alone.items():
        torch.testing.assert_close(medium[name], value, rtol=1e-4, atol=1e-6)


def test_only_the_medium_level_of_a_stored_memory_is_replaced(loaded: tuple[Hope, Tokenizer]) -> None:
    model, tokenizer = loaded
    with torch.no_grad():
        _, memory = model(torch.tensor([tokenizer.read_turn(FACTS[0], reply=True)]), model.initial_memory(1))
    stored = pack_row(memory, model.config.chunk_projections)
    rows = compose([make_turn(FACTS[0])], tokenizer, ReplayPolicy())
    medium = train(model, rows, 2, 5.0, ReplayPolicy())
    merged = with_medium(stored, medium, model)
    others = {name: value for name, value in merged.items() if level_of(name) != CMS_MEDIUM}
    assert others.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in others.items())
    back = medium_of(merged, model)
    for name, value in medium.items():
        torch.testing.assert_close(back[name], value, rtol=1e-2, atol=1e-4)
    assert with_medium(merged, back, model).keys() == merged.keys()
    again = with_medium(merged, back, model)
    assert all(torch.equal(again[name], value) for name, value in merged.items())

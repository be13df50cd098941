"""A portion: what a turn told is answered by `cms.medium` alone, and what an earlier one told still is afterwards."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import CMS_MEDIUM, LevelConfig
from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Dream
from engine.consolidation.policy import SESSION_DREAMS
from engine.consolidation.portion import REHEARSAL, Portion, read_rehearsal, write_rehearsal
from engine.consolidation.replay import medium_of
from engine.consolidation.suite import load_suite
from engine.core import MemoryReport, Timing, Turn, Usage
from engine.model.hope import MOST_REHEARSED, REHEARSED_TOKENS, Hope, Memory
from engine.model.portable import fits, pack_row, unpack_row
from engine.model.weights import load_checkpoint
from engine.tokenizer import END, Tokenizer
from tests.tiny import SHIPPED, tiny_model

TINY = tiny_model(writes_hard=False)
# Small enough for a test.
POLICY = replace(SESSION_DREAMS, more_dreams=8, near_dreams=12, idle_dreams=24, num_steps=32, rows_per_step=16)
NEVER_TOLD = (
    "What is my sister called?",
    "What is my dog called?",
    "Who is my boss?",
    "Where do I work?",
    "What is my shoe size?",
    "What is my favourite colour?",
)
SUITE = replace(load_suite(), calm=load_suite().calm[:24])


def turn(message: str, reply: str = "I'll remember that.", surprise: float = 4.0) -> Turn:
    report, usage, timing = MemoryReport(1, 0, True, surprise, ()), Usage(0, 0, 0), Timing(0.0, 0.0, 0.0, 0.0)
    return Turn("t", "s", 0, "", message, reply, "stop", usage, report, timing)


def taught(model: Hope, tokenizer: Tokenizer, medium: Memory, *messages: str) -> Memory:
    portion = Portion(model, tokenizer, SUITE, POLICY, medium, {}, model.initial_memory(1))
    for message in messages:
        portion.take_in(turn(message))
    assert portion.prepare()
    losses = [portion.step(number).loss for number in range(POLICY.num_steps)]
    assert losses[-1] < losses[0]
    return portion.medium


@pytest.mark.skipif(not SHIPPED, reason="the package holds no checkpoint")
def test_what_was_told_is_known_by_cms_medium_alone_is_kept_and_is_answered_anew_when_it_changes() -> None:
    model, tokenizer = load_checkpoint()
    model.requires_grad_(False)
    nothing = medium_of({}, model)

    def reply(question: str, medium: Memory) -> str:
        (dream,) = Dreamer(model, tokenizer, SUITE, POLICY, {}).calm((question,), medium)
        return tokenizer.decode(dream.tokens[dream.reply_at :])

    assert "Zorinda" not in reply("What is my cat called?", nothing)
    first = taught(model, tokenizer, nothing, "My cat is called Zorinda.", "It rained all day.")
    assert "Zorinda" in reply("What is my cat called?", first)
    assert read_rehearsal(first, model)
    # As the store gives it back.
    stored = pack_row({**model.initial_memory(1), **first}, model.config.chunk_projections)
    assert fits(stored, model)
    again = medium_of(stored, model)
    assert torch.equal(again[REHEARSAL], first[REHEARSAL])
    second = taught(model, tokenizer, again, "I live in Marrowick.")
    assert "Zorinda" in reply("What is my cat called?", second)
    assert "Marrowick" in reply("Where do I live?", second)
    third = taught(model, tokenizer, second, "My cat is called Brenko now.")
    assert "Brenko" in reply("What is my cat called?", third)
    assert "Marrowick" in reply("Where do I live?", third)
    # What only resembles it has no answer; with so few steps, most of it.
    named = [question for question in NEVER_TOLD if any(name in reply(question, third) for name in ("Brenko", "Zor"))]
    assert len(named) <= 2, named
    assert int(third[f"{CMS_MEDIUM}.updates"]) == 3 * POLICY.num_steps


def test_noise_is_not_dreamt_of_and_nothing_is_learned_of_nothing() -> None:
    tokenizer = Tokenizer.train(["What is it?"], 320)
    model = tiny_model(writes_hard=False, vocab_size=tokenizer.vocab_size)
    medium = medium_of({}, model)
    portion = Portion(model, tokenizer, SUITE, POLICY, medium, {}, model.initial_memory(1))
    portion.take_in(turn("xq zz!", surprise=POLICY.surprise_ceiling + 1))
    assert not portion.prepare()
    after = portion.medium
    assert after.keys() == medium.keys()
    assert all(torch.equal(value, medium[name]) for name, value in after.items())


@given(st.lists(st.tuples(st.integers(3, 60), st.integers(0, 9)), max_size=150), st.integers(0, 3))
def test_what_is_rehearsed_comes_back_as_it_was_within_its_bound(shapes: list[tuple[int, int]], seed: int) -> None:
    dreams = []
    for number, (length, start) in enumerate(shapes):
        drawn = random.Random(number).choices(range(8, 64), k=length)
        dreams.append(Dream((1, *drawn, END), 1 + start % (length - 1)))
    empty = TINY.initial_memory(1)[REHEARSAL]
    kept = write_rehearsal(dreams, empty, random.Random(seed))
    assert kept.shape == empty.shape == (1, MOST_REHEARSED, 1 + REHEARSED_TOKENS)
    found = read_rehearsal({REHEARSAL: kept}, TINY)
    short = [one for one in dreams if len(one.tokens) <= REHEARSED_TOKENS]
    assert len(found) == min(len(short), MOST_REHEARSED)
    assert set(found) <= set(short)


@pytest.mark.parametrize(
    "row", [[99, 1, 8, 9, END], [1, 1, 5000, 9, END], [-1, 1, 8, END], [2, 1, END], [1, -7, 8, END]]
)
def test_rows_that_can_be_no_dreams_are_left_out(row: list[int]) -> None:
    rows = torch.zeros_like(TINY.initial_memory(1)[REHEARSAL])
    rows[0, 0, : len(row)] = torch.tensor(row, dtype=torch.int32)
    assert read_rehearsal({REHEARSAL: rows}, TINY) == []


def test_no_pass_reads_what_is_rehearsed() -> None:
    memory = TINY.initial_memory(1)
    tokens = torch.arange(8, 20)[None]
    logits, _ = TINY(tokens, memory)
    again, after = TINY(tokens, {**memory, REHEARSAL: torch.ones_like(memory[REHEARSAL])})
    assert torch.equal(logits, again)
    assert bool((after[REHEARSAL] == 1).all())
    # Where nothing is, nothing is stored.
    assert REHEARSAL not in pack_row(after | {REHEARSAL: memory[REHEARSAL]}, TINY.config.chunk_projections)
    assert REHEARSAL in unpack_row({}, TINY)


def test_a_model_without_the_level_has_none() -> None:
    model = tiny_model(levels=(LevelConfig("cms.fast", 16, "session", 0.5),))
    assert REHEARSAL not in model.initial_memory(1)

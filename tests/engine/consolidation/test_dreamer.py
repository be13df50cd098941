"""The dreamer: questions with replies that are news, each once, of what was told and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import as_said
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import load_suite
from engine.core import MemoryReport, Timing, Turn, Usage
from engine.model.shared import initial_shared
from engine.model.weights import load_checkpoint
from engine.tokenizer import ASSISTANT, END, USER
from tests.tiny import SHIPPED, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(writes_hard=False, vocab_size=TOKENIZER.vocab_size)
POLICY = GenerationPolicy(first_dreams=10, more_dreams=10, near_dreams=10)


def turn(message: str) -> Turn:
    report, usage, timing = MemoryReport(1, 0, True, 3.0, ()), Usage(0, 0, 0), Timing(0.0, 0.0, 0.0, 0.0)
    return Turn("t", "s", 0, "", message, "I'll remember that.", "stop", usage, report, timing)


@pytest.mark.skipif(not SHIPPED, reason="the package holds no checkpoint")
def test_a_turn_that_told_something_is_dreamt_of_and_small_talk_is_not() -> None:
    model, tokenizer = load_checkpoint()
    dreamer = Dreamer(model, tokenizer, load_suite(), POLICY, initial_shared(model))
    generator = torch.Generator().manual_seed(0)
    dreamt = dreamer.of_turn(turn("My cat is called Zorinda."), "mine", generator)
    assert any("Zorinda" in tokenizer.decode(one.dream.tokens[one.dream.reply_at :]) for one in dreamt)
    assert len({one.dream.question for one in dreamt}) == len(dreamt)
    for one in dreamt:
        tokens, at = one.dream.tokens, one.dream.reply_at
        assert (tokens[0], tokens[at], tokens[-1]) == (USER, ASSISTANT, END)
        assert "?" not in tokenizer.decode(tokens[at:]), "who asks back has not answered"
        assert one.dream.news > POLICY.news_nats
        assert one.answer_NV.shape == (len(tokens) - 1 - at, model.config.vocab_size)
        assert one.session == "mine"
        assert one.dream.question != (USER, *tokenizer.encode("Nothing new."))
    assert dreamer.otherwise
    for one in dreamer.otherwise:
        told, answered = one.dream.question, tokenizer.decode(one.dream.tokens[one.dream.reply_at :])
        assert "Zorinda" not in answered, "it is told with another name"
        assert answered.rstrip(".").split()[-1] in tokenizer.decode(told), "and the reply heeds that one"
    assert (
        0 < sum("Zorinda" in tokenizer.decode(one.dream.question) for one in dreamer.otherwise) < len(dreamer.otherwise)
    ), "some after the turn as it was"
    num_otherwise = len(dreamer.otherwise)
    assert dreamer.of_turn(turn("Hello there, how are you?"), "mine", generator) == []
    assert len(dreamer.otherwise) == num_otherwise


@pytest.mark.skipif(not SHIPPED, reason="the package holds no checkpoint")
def test_the_same_seed_dreams_the_same() -> None:
    model, tokenizer = load_checkpoint()
    dreamer = Dreamer(model, tokenizer, load_suite(), replace(POLICY, first_dreams=4, more_dreams=1, near_dreams=4), {})
    one, same = (dreamer.of_turn(turn("I live in Marrowick."), "", torch.Generator().manual_seed(3)) for _ in range(2))
    assert [example.dream for example in one] == [example.dream for example in same]


def test_turns_can_be_learned_as_they_were_said() -> None:
    dreamer = Dreamer(MODEL, TOKENIZER, load_suite(), replace(POLICY, material="turns"), {})
    (said,) = dreamer.of_turn(turn("My dog is called Rex."), "s", torch.Generator())
    assert TOKENIZER.decode(said.dream.tokens) == "My dog is called Rex. I'll remember that."
    assert said.answer_NV.argmax(-1).tolist() == list(said.dream.tokens[1:])
    assert as_said(said.dream.tokens, TOKENIZER.vocab_size, "s").dream == said.dream

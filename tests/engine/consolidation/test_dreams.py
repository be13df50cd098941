"""Dreams as rows of a batch: their likelihoods, their answers, and how they are kept."""

from __future__ import annotations

import pytest
import torch

from engine.consolidation.dreams import Dream, as_rows, batches, examples, less_sure, likelihood
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.rehearsal import crowded_out, read_dreams, write_dreams
from engine.tokenizer import ASSISTANT, END, USER
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(writes_hard=False, vocab_size=TOKENIZER.vocab_size)
POLICY = GenerationPolicy(first_dreams=10, more_dreams=10)


def test_likelihood_is_that_of_the_replies_alone() -> None:
    dreams = [Dream((USER, 20, 21, ASSISTANT, 30, END), 3), Dream((USER, 22, ASSISTANT, 31, 32, 33, END), 2)]
    memory = MODEL.initial_memory(1)
    with torch.no_grad():
        together = likelihood(MODEL, memory, as_rows(dreams))
        for dream, value in zip(dreams, together, strict=True):
            logits, _ = MODEL(torch.tensor([dream.tokens]), memory)
            chances = torch.log_softmax(logits[0], -1)
            places = range(dream.reply_at, len(dream.tokens) - 1)
            expected = sum(float(chances[place, dream.tokens[place + 1]]) for place in places)
            assert float(value) == pytest.approx(expected, rel=1e-4)
        found = examples(MODEL, memory, dreams, "s")
    assert [one.answer_NV.shape[0] for one in found] == [2, 4]


@pytest.mark.parametrize("certainty", [0.25, 0.7, 1.0])
def test_a_value_is_named_less_surely_and_the_rest_of_the_reply_as_before(certainty: float) -> None:
    dream, fresh = Dream((USER, 20, ASSISTANT, 31, 32, 33, 34, END), 2), MODEL.initial_memory(1)
    with torch.no_grad():
        told = MODEL(torch.tensor([[USER, 20, 30, 31, 32, 33] * 4]), fresh)[1]
    [known], [unknown] = (examples(MODEL, memory, [dream], "s") for memory in (told, fresh))
    assert float((known.answer_NV - unknown.answer_NV).abs().amax(1).min()) > 1e-2
    mixed = less_sure(known, unknown, (32, 33), certainty)
    assert (mixed.dream, mixed.session) == (dream, "s")
    expected = known.answer_NV.float().exp()
    expected[1:3] = certainty * expected[1:3] + (1 - certainty) * unknown.answer_NV[1:3].float().exp()
    torch.testing.assert_close(mixed.answer_NV.float().exp(), expected, atol=1e-3, rtol=1e-2)
    assert less_sure(known, unknown, None, certainty) is known


def test_a_narrowed_dream_asks_for_the_value_alone_and_another_reply_has_no_end() -> None:
    dream = Dream((USER, 20, 32, ASSISTANT, 31, 32, 33, 34, END), 3)
    assert dream.narrowed((32, 33)) == Dream((USER, 20, 32, ASSISTANT, 31, 32, 33), 4)
    assert dream.replying((40, 41)) == Dream((USER, 20, 32, ASSISTANT, 40, 41), 3)


def test_parts_hold_everything_once() -> None:
    dreams = [Dream((USER, 20 + number, ASSISTANT, END), 2) for number in range(7)]
    assert [one for part in batches(dreams, 3) for one in part] == dreams
    assert read_dreams(write_dreams(dreams)) == dreams


def test_the_generation_with_the_most_gives_way() -> None:
    def of(count: int) -> str:
        return write_dreams([Dream((USER, 20, ASSISTANT, END), 2)] * count)

    kept = {"1:a": of(4), "1:b": of(4), "2:a": of(3)}
    assert crowded_out(kept, 11) == []
    assert crowded_out(kept, 8) == ["1:a"]
    assert crowded_out(kept, 3) == ["1:a", "1:b"]

"""Made-up turns: what they say is asked for, the answer names it, and without the turn nobody would give it."""

from __future__ import annotations

import pytest
import torch

from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Dream, as_rows, likelihood
from engine.consolidation.hearing import made_up
from engine.consolidation.otherwise import value_of
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import load_suite
from engine.model.shared import initial_shared
from engine.model.weights import load_checkpoint
from engine.tokenizer import ASSISTANT, END, USER
from tests.tiny import SHIPPED, tiny_model, tiny_tokenizer

POLICY = GenerationPolicy(made_up_turns=24)


@pytest.mark.skipif(not SHIPPED, reason="the package holds no checkpoint")
def test_each_tells_something_that_its_reply_names_and_that_nobody_knows_without_it() -> None:
    model, tokenizer = load_checkpoint()
    model.requires_grad_(False)
    dreamer = Dreamer(model, tokenizer, load_suite(), POLICY, initial_shared(model))
    found = made_up(model, dreamer, POLICY, torch.Generator().manual_seed(0))
    assert len(found) > 2
    for one in found:
        tokens, at = one.dream.tokens, one.dream.reply_at
        assert [token for token in tokens if token in (USER, ASSISTANT, END)] == [USER, ASSISTANT, END] * 2
        asked = len(one.dream.question) - 1 - one.dream.question[::-1].index(USER)
        alone = Dream(tokens[asked:], at - asked)
        assert value_of(tokens[:asked], alone) is not None
        nobody = model.initial_memory(1)
        gained = likelihood(model, nobody, as_rows([one.dream])) - likelihood(model, nobody, as_rows([alone]))
        assert float(gained) > POLICY.news_nats
        assert one.answer_NV.shape == (len(tokens) - 1 - at, model.config.vocab_size)
    again = made_up(model, dreamer, POLICY, torch.Generator().manual_seed(0))
    assert [one.dream for one in again] == [one.dream for one in found]


def test_a_model_that_says_nothing_of_use_makes_nothing_up() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(writes_hard=False, vocab_size=tokenizer.vocab_size)
    dreamer = Dreamer(model, tokenizer, load_suite(), POLICY, initial_shared(model))
    assert made_up(model, dreamer, POLICY, torch.Generator().manual_seed(0)) == []

"""What a session is to go on answering: what its turns told, and of all else that it does not know."""

from __future__ import annotations

import pytest

from engine.consolidation.at_home import at_home
from engine.consolidation.dreamer import Dreamer
from engine.consolidation.policy import SESSION_DREAMS
from engine.consolidation.suite import load_suite
from engine.core import MemoryReport, Timing, Turn, Usage
from engine.model.weights import load_checkpoint
from tests.tiny import SHIPPED

TOLD = Turn(
    *("t", "s", 0, "", "My cat is called Zorinda.", "I'll remember that.", "stop"),
    Usage(0, 0, 0),
    MemoryReport(1, 0, True, 4.0, ()),
    Timing(0.0, 0.0, 0.0, 0.0),
)
ASKED = ("What is my cat called?", "Where is my violin?")


@pytest.mark.skipif(not SHIPPED, reason="the package holds no checkpoint")
def test_a_reply_that_a_turn_told_stays_and_one_that_none_told_becomes_that_of_who_knows_nothing() -> None:
    model, tokenizer = load_checkpoint()
    model.requires_grad_(False)
    dreamer = Dreamer(model, tokenizer, load_suite(), SESSION_DREAMS, {})
    home = dreamer.after(TOLD)
    questions = [tuple(tokenizer.read_turn(message, reply=True)[:-1]) for message in ASKED]

    def rows(*turns: Turn) -> dict[str, str]:
        found = at_home(model, dreamer, home, {}, turns, questions)
        assert all(one.at_home for one in found)
        assert all(one.answer_NV.shape[0] == len(one.dream.tokens) - 1 - one.dream.reply_at for one in found)
        said = {one.dream.question: tokenizer.decode(one.dream.tokens[one.dream.reply_at :]) for one in found}
        return {message: said[question] for message, question in zip(ASKED, questions, strict=True)}

    told, nobody_told = rows(TOLD), rows()
    assert "Zorinda" in told[ASKED[0]]
    # The session says it, but nobody told it: what it is to say is what it would without.
    (fresh,) = dreamer.replied(dreamer.fresh, questions[:1])
    assert nobody_told[ASKED[0]] == tokenizer.decode(fresh.tokens[fresh.reply_at :])
    assert "Zorinda" not in nobody_told[ASKED[0]]
    assert "Zorinda" not in told[ASKED[1]]

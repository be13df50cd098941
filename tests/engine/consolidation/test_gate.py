"""The gate: every limit, broken by a candidate made for it, refuses with the figure in the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Dream
from engine.consolidation.gate import Examination, Gate, norm, reason_of
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import Probe, Suite, load_suite
from engine.core import GateCheck
from engine.model.hope import Memory
from engine.model.shared import initial_shared, with_shared
from engine.tokenizer import ASSISTANT, END, USER
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(writes_hard=False, vocab_size=TOKENIZER.vocab_size)
PARENT = initial_shared(MODEL)
SUITE = Suite("", "", (), (), (("My dog is called Rex.", "Nice."), ("The train leaves.", "Do not be late.")), ())


def gate(policy: GenerationPolicy | None = None, suite: Suite = SUITE) -> Gate:
    wanted = policy or GenerationPolicy()
    return Gate(MODEL, TOKENIZER, suite, wanted, Dreamer(MODEL, TOKENIZER, load_suite(), wanted, PARENT))


def moved(size: float, seed: int = 0) -> Memory:
    """A candidate that knows something at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in PARENT.items()
    }


def answered(shared: Memory, starts: Sequence[int]) -> list[Dream]:
    """Questions with the replies that a generation gives: three most likely tokens each."""
    found = []
    for start in starts:
        tokens = [1, start, start + 1, 2]
        for _ in range(3):
            memory = with_shared(MODEL.initial_memory(1), shared)
            logits, _ = MODEL(torch.tensor([tokens]), memory)
            tokens.append(int(logits[0, -1].argmax()))
        found.append(Dream(tuple(tokens), 3))
    return found


def test_a_candidate_that_keeps_everything_is_let_in() -> None:
    same = answered(PARENT, range(20, 30))
    checks = gate().examine(PARENT, PARENT, Examination(same, same, same, same))
    assert set(checks) == {"finite", "drift", "uptake", "retention", "calm", "heard", "perplexity"}
    assert reason_of(checks) is None
    assert (checks["uptake"].before, checks["uptake"].after) == (1.0, 1.0)


def test_what_is_not_finite_is_refused_and_nothing_else_is_asked() -> None:
    candidate = moved(0.1)
    name = next(name for name, value in candidate.items() if value.is_floating_point())
    candidate[name] = candidate[name].clone()
    candidate[name].flatten()[3] = torch.nan
    checks = gate().examine(PARENT, candidate, Examination((), (), ()))
    assert checks == {"finite": GateCheck(0.0, 1.0, 0.0, False)}
    assert "finite 1" in (reason_of(checks) or "")


def test_a_candidate_that_drifted_too_far_is_refused() -> None:
    candidate = moved(0.5)
    checks = gate(GenerationPolicy(most_drift=norm(candidate) * 0.9)).examine(
        PARENT, candidate, Examination((), (), ())
    )
    assert not checks["drift"].passed
    assert checks["drift"].after == pytest.approx(norm(candidate))


@pytest.mark.parametrize("name", ["uptake", "retention", "calm"])
def test_a_candidate_that_answers_otherwise_is_refused(name: str) -> None:
    candidate = moved(2.0)
    own, others = answered(PARENT, range(20, 40)), answered(candidate, range(20, 40))
    asked = {"held_out": own, "rehearsal": own, "calm": own}
    # It knows what it was told, and has forgotten what it knew; or the other way round.
    if name != "uptake":
        asked["held_out"] = others
    lost = {"uptake": "held_out", "retention": "rehearsal", "calm": "calm"}[name]
    asked = {part: (dreams if part == lost or part == "held_out" else []) for part, dreams in asked.items()}
    checks = gate(GenerationPolicy(most_drift=1e9, most_perplexity=1e9)).examine(
        PARENT, candidate, Examination(**asked)
    )
    assert not checks[name].passed
    assert checks[name].after < checks[name].limit
    assert (reason_of(checks) or "").count(name) == 1


class Talkative(Dreamer):
    """An untrained model's replies have no end: here they end after three tokens."""

    def replies(self, streams: Sequence[Sequence[int]], shared: Memory) -> list[Dream]:
        memory, found = with_shared(MODEL.initial_memory(1), shared), []
        for stream in streams:
            tokens = [*stream, ASSISTANT]
            for _ in range(3):
                logits, _ = MODEL(torch.tensor([tokens]), memory)
                tokens.append(int(logits[0, -1].argmax()))
            found.append(Dream((*tokens, END), len(stream)))
        return found


def test_a_candidate_under_which_nothing_else_is_heard_is_refused() -> None:
    candidate = moved(2.0)
    policy = GenerationPolicy(most_drift=1e9, most_perplexity=1e9, least_heard=0.5)
    dreamer = Talkative(MODEL, TOKENIZER, load_suite(), policy, PARENT)
    parents = dreamer.replies([(USER, start, start + 1) for start in range(20, 40)], PARENT)
    # What must be named is a part of what the parent says, wherever that stands.
    heard = [one.replying(one.tokens[one.reply_at + 2 : one.reply_at + 4]) for one in parents]
    asked = Examination((), (), (), heard)
    same = Gate(MODEL, TOKENIZER, SUITE, policy, dreamer).examine(PARENT, PARENT, asked)["heard"]
    assert same == GateCheck(1.0, 1.0, 0.5, True)
    checks = Gate(MODEL, TOKENIZER, SUITE, policy, dreamer).examine(PARENT, candidate, asked)
    assert not checks["heard"].passed
    assert "heard" in (reason_of(checks) or "")


def test_text_that_became_less_likely_than_it_was_at_first_refuses() -> None:
    # An untrained model is so sure of itself that most noise does it good: this one is against what that does.
    checks = gate(GenerationPolicy(most_drift=1e9)).examine(PARENT, moved(-0.05, 3), Examination((), (), ()))
    assert not checks["perplexity"].passed
    assert checks["perplexity"].limit == pytest.approx(checks["perplexity"].before * 1.02)


def test_what_lessons_made_likelier_may_become_less_likely_again() -> None:
    checks = gate(GenerationPolicy(most_drift=1e9)).examine(moved(1.0, 4), moved(0.2, 1), Examination((), (), ()))
    assert checks["perplexity"].passed
    assert checks["perplexity"].before * 1.02 < checks["perplexity"].after < checks["perplexity"].limit


def test_an_operators_probe_refuses() -> None:
    # An untrained model says nothing that ends: no reply, which passes no probe that wants a word.
    suite = replace(SUITE, probes=(Probe("Who are you?", ("hope",)),))
    checks = gate(suite=suite).examine(PARENT, PARENT, Examination((), (), ()))
    assert checks["probes"] == GateCheck(0.0, 0.0, 0.0, True)
    checks["probes"] = replace(checks["probes"], before=1.0, limit=1.0, passed=False)
    assert reason_of(checks) == "the gate refused it: probes 0 (before 1, limit 1)"


def test_the_norm_is_that_of_all_that_is_known() -> None:
    assert norm(PARENT) == 0.0
    assert norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]]), "updates": torch.tensor([7])}) == 5.0
    assert END == 3

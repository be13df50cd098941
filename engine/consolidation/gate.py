"""The gate: what a candidate generation must keep to be let in, measured before and after.

Uptake of what was told, retention of what earlier generations knew, calm where nobody told anything, whether what is
told otherwise is heard, perplexity of a fixed text, an operator's probes, and that its numbers are numbers and not too
large. Publishes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from engine.consolidation.calm import share_kept
from engine.consolidation.dreamer import Dreamer
from engine.consolidation.dreams import Dream, as_rows, batches, log_chances, next_tokens
from engine.consolidation.otherwise import holds
from engine.consolidation.policy import GenerationPolicy
from engine.consolidation.suite import Suite
from engine.core import GateCheck
from engine.model.hope import Hope, Memory
from engine.model.shared import initial_shared, with_shared
from engine.tokenizer import ASSISTANT, END, Tokenizer

# What a figure that is no number, or without bound, is shown as.
BEYOND = 1e9


@dataclass(frozen=True)
class Examination:
    """What a candidate is asked.

    Attributes:
        held_out: dreams of its sessions.
        rehearsal: dreams of earlier generations.
        calm: what is to stay as it is.
        heard: questions after a turn that tells otherwise than its sessions did, with what must be named.
        told: dreams of its sessions, all of them: what no reply to a calm question may name.
    """

    held_out: Sequence[Dream]
    rehearsal: Sequence[Dream]
    calm: Sequence[Dream]
    heard: Sequence[Dream] = ()
    told: Sequence[Dream] = ()


class Gate:
    """Compares a candidate with its parent.

    Args:
        model, tokenizer: of both.
        suite: the fixed text and the probes.
        policy: the limits.
        dreamer: answers the probes, and what is asked otherwise than word for word.
    """

    def __init__(
        self, model: Hope, tokenizer: Tokenizer, suite: Suite, policy: GenerationPolicy, dreamer: Dreamer
    ) -> None:
        self._model, self._tokenizer, self._suite, self._policy = model, tokenizer, suite, policy
        self._dreamer = dreamer

    @torch.no_grad()
    def examine(self, parent: Memory, candidate: Memory, asked: Examination) -> dict[str, GateCheck]:
        """Every check by its name; those that ask nothing are left out. A candidate is let in where all passed."""
        policy = self._policy
        broken = float(sum(int((~torch.isfinite(value)).sum()) for value in candidate.values()))
        checks = {"finite": GateCheck(0.0, broken, 0.0, broken == 0.0)}
        if broken:
            return checks
        drift = norm(candidate)
        checks["drift"] = GateCheck(norm(parent), drift, policy.most_drift, drift <= policy.most_drift * 1.001)
        calm = partial(self._calm, told=asked.told)
        for name, dreams, share, floor, measure in (
            ("uptake", asked.held_out, 1.0, policy.least_uptake, self._agreement),
            ("retention", asked.rehearsal, policy.least_retention, 0.0, self._agreement),
            ("calm", asked.calm, policy.least_calm, 0.0, calm),
            ("heard", asked.heard, policy.least_heard, 0.0, self._named),
        ):
            if dreams:
                before, after = measure(parent, dreams), measure(candidate, dreams)
                limit = max(before * share, floor)
                checks[name] = GateCheck(before, after, limit, after >= limit)
        before, after = self._perplexity(parent), self._perplexity(candidate)
        # Lessons make the fixed text likelier than it was at first, by more than they differ: that may be lost again.
        limit = max(before, self._perplexity(initial_shared(self._model))) * policy.most_perplexity
        checks["perplexity"] = GateCheck(before, after, limit, after <= limit)
        if self._suite.probes:
            before, after = self._probed(parent), self._probed(candidate)
            checks["probes"] = GateCheck(before, after, before, after >= before)
        return checks

    def _agreement(self, shared: Memory, dreams: Sequence[Dream]) -> float:
        """The share of dreams whose whole reply is what a session that was told nothing would say."""
        return len(self._repeated(shared, dreams)) / len(dreams)

    def _calm(self, shared: Memory, dreams: Sequence[Dream], told: Sequence[Dream]) -> float:
        """The share of replies that say what they said, if in other words."""
        same = {one.question for one in self._repeated(shared, dreams)}
        others = [one.question for one in dreams if one.question not in same]
        now = {one.question: one.tokens[one.reply_at :] for one in self._dreamer.replies(others, shared)}
        return share_kept(dreams, same, now, told)

    def _repeated(self, shared: Memory, dreams: Sequence[Dream]) -> list[Dream]:
        """The dreams whose whole reply is what a session that was told nothing would say."""
        memory = with_shared(self._model.initial_memory(1), shared)
        same: list[Dream] = []
        for batch in batches(dreams):
            rows = as_rows(batch)
            chances_NV, places = log_chances(self._model, memory, rows)
            right_BT = ~places
            right_BT[places] = chances_NV.argmax(-1) == next_tokens(rows)[places]
            same += [one for one, right in zip(batch, right_BT.all(1).tolist(), strict=True) if right]
        return same

    def _named(self, shared: Memory, asked: Sequence[Dream]) -> float:
        """The share of these whose reply is said in a session's, in whatever words."""
        said = {one.question: one.tokens for one in self._dreamer.replies([one.question for one in asked], shared)}
        named = [holds(said.get(one.question, ())[one.reply_at :], one.tokens[one.reply_at + 1 :]) for one in asked]
        return sum(named) / len(named)

    def _perplexity(self, shared: Memory) -> float:
        """Of the fixed text, turn by turn, each read by a session that was told nothing."""
        memory = with_shared(self._model.initial_memory(1), shared)
        turns = []
        for message, reply in self._suite.text:
            tokens = [*self._tokenizer.read_turn(message, reply=True), *self._tokenizer.encode(reply), END]
            turns.append(Dream(tuple(tokens), 0))
        total, count = 0.0, 0.0
        for batch in batches(turns):
            rows = as_rows(batch)
            chances_NV, places = log_chances(self._model, memory, rows)
            next_N = next_tokens(rows)[places]
            # Frames are no text.
            counts_N = next_N != ASSISTANT
            total -= float((chances_NV.gather(-1, next_N[:, None])[:, 0] * counts_N).sum())
            count += float(counts_N.sum())
        mean = total / max(count, 1.0)
        return math.exp(mean) if mean < math.log(BEYOND) else BEYOND

    def _probed(self, shared: Memory) -> float:
        """The share of an operator's probes that are answered well."""
        probes = self._suite.probes
        replies = {
            dream.question: self._tokenizer.decode(dream.tokens[dream.reply_at :])
            for dream in self._dreamer.calm([probe.ask for probe in probes], shared)
        }
        asked = [tuple(self._tokenizer.read_turn(probe.ask, reply=True)[:-1]) for probe in probes]
        passed = [probe.passed(replies.get(question, "")) for probe, question in zip(probes, asked, strict=True)]
        return sum(passed) / len(passed)


def reason_of(checks: dict[str, GateCheck]) -> str | None:
    """Why a candidate is refused, in words; None where it is let in."""
    words = [
        f"{name} {check.after:.3g} (before {check.before:.3g}, limit {check.limit:.3g})"
        for name, check in checks.items()
        if not check.passed
    ]
    return "the gate refused it: " + ", ".join(words) if words else None


def norm(shared: Memory) -> float:
    """Frobenius norm of all that a generation knows."""
    squares = [value.square().sum() for value in shared.values() if value.is_floating_point()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

"""Clocks of CMS levels that learn inside the text: their rates learned by gradient, fixed, or no steps at all.

Every arm gets as many candidates, halved by validation loss while steps double (a search that resumes run by run),
and the same steps at the end. Knows no in-context step; that is `engine/model/in_context.py`'s.

Shapes: B rows, T tokens, N tokens of a segment, D width.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from engine.errors import InvalidRequest
from engine.evaluation.contestants import Shape, build, num_parameters
from engine.evaluation.examples import Examples, Mark
from engine.evaluation.fitting import FitPlan, fit
from engine.evaluation.study import Results, Run, by_model
from engine.evaluation.tasks.dialogues import TEXT as ALL_TEXT
from engine.evaluation.tasks.dialogues import VALUES, DialoguePlan, DialogueTask
from engine.model.hope import Hope, Memory
from engine.model.in_context import run_in_context
from engine.training.dialogue import Stage

NAME = "clocks"
TITLE = "Clocks: rates of levels that learn inside the text, learned or fixed"
TEXT = """Hope's fast and medium CMS levels take a next-token step at the end of their periods while the text is read,
in training and in the test. *learned* has the logarithms of their rates among its parameters, *fixed* keeps the
rates it was given, *none* takes no steps. Periods, rates and the learning rate of training are searched for by
successive halving, with as many trials and steps for every arm. Measured on long memory dialogues with values that
training never draws: perplexity of their text, share of answers whose value is right."""
PERCENT = False
ARMS = ("none", "fixed", "learned")
STEPS = 120
PERIODS = (64, 128, 256, 512)
LEVEL_RATES = (0.1, 0.3, 1.0, 3.0)
RATES = (1e-3, 8e-3)
STAGE = Stage(768, 2, 6, 0.3)
NUM_TEST_ROWS = 16
LEVELS = ("cms.fast", "cms.medium")
# A learned log rate is its start plus this many times its parameter: AdamW moves all parameters alike, and a rate
# has further to go than a weight.
LOG_RATE_SCALE = 10.0


@dataclass(frozen=True)
class Candidate:
    """What is searched over: the learning rate of training; periods (fast, medium) in tokens, their level rate."""

    rate: float
    periods: tuple[int, int] = (64, 128)
    level_rate: float = 1.0

    @property
    def name(self) -> str:
        """The candidate in a few words, for the settings of a run."""
        return f"rate {self.rate:g}, periods {self.periods[0]} {self.periods[1]}, level rate {self.level_rate:g}"


class Clocked(nn.Module):
    """A Hope whose session levels step inside the text, with fixed or with learned rates, or not at all."""

    def __init__(self, model: Hope, arm: str, candidate: Candidate) -> None:
        super().__init__()
        self.model, self.arm = model, arm
        self.start = math.log(candidate.level_rate)
        self.moved = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in LEVELS if arm == "learned")

    def losses(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens 1 to T-1, the losses in nats and whether each was the likeliest [B,T-1]; levels learn."""
        hits: list[Tensor] = []

        def loss_of(x_BND: Tensor, target_BN: Tensor) -> Tensor:
            logits = self.model.logits(x_BND)
            hits.append(logits.detach().argmax(-1) == target_BN)
            losses = functional.cross_entropy(logits.flatten(0, 1), target_BN.flatten(), reduction="none")
            return losses.view_as(target_BN)

        memory = self.model.initial_memory(tokens_BT.shape[0], levels=self.arm != "none")
        losses_BT, _ = run_in_context(self.model, tokens_BT, memory, loss_of, rates=self.log_rates())
        return losses_BT, torch.cat(hits, 1)

    def log_rates(self) -> dict[str, Tensor]:
        """Logarithms of the learned rates by level; of none where they are fixed."""
        return {name: self.start + LOG_RATE_SCALE * moved for name, moved in zip(LEVELS, self.moved, strict=False)}

    # Read without a step, as every model of `examples.Model`.
    def initial_memory(self, batch_size: int, levels: bool = True) -> Memory:
        """As the Hope's."""
        return self.model.initial_memory(batch_size, levels)

    def hidden(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        """As the Hope's."""
        return self.model.hidden(tokens_BT, memory, lengths_B)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """As the Hope's."""
        return self.model.logits(x_BTD)


@dataclass(frozen=True)
class Search:
    """What every arm gets: a task, candidates, steps of the last rung, seeds of the best."""

    task: DialogueTask
    steps: int
    num_seeds: int
    rates: tuple[float, float] = RATES


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags; its rows are arms, so --models does not choose among them."""
    parser.add_argument("--arm", action="append", choices=ARMS, help="only this one, repeatable")
    parser.add_argument("--row-tokens", type=int, default=STAGE.num_tokens, metavar="N", help="tokens of a dialogue")


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing of every arm's search and of its best candidate's seeds; returns those last.

    Raises:
        InvalidRequest: rows in which no level would take a step.
    """
    if given.row_tokens <= PERIODS[0]:
        raise InvalidRequest(f"rows of {given.row_tokens} tokens end before the first step", param="row_tokens")
    stage = replace(STAGE, num_tokens=given.row_tokens)
    rates = (min(given.rates), max(given.rates)) if given.rates else RATES
    search = Search(
        DialogueTask(DialoguePlan(stage, num_test_rows=NUM_TEST_ROWS)), given.steps or STEPS, given.seeds, rates
    )
    arms = given.arm or ARMS
    num_runs = sum(number for number, _ in rungs(search.steps)) + search.num_seeds - 1
    with tqdm(total=num_runs * len(arms), unit="run", desc=NAME) as bar:

        def run(arm: str, candidate: Candidate, steps: int, seed: int) -> Run:
            bar.set_postfix_str(f"{arm}, {candidate.name}, {steps} steps, seed {seed}")
            found = train(search, results, arm, candidate, steps, seed)
            bar.update()
            return found

        return [last for arm in arms for last in halve(search, arm, run)]


def candidates(arm: str, rates: tuple[float, float]) -> list[Candidate]:
    """Six of an arm, the same ones for learned and fixed rates; an arm without steps has only its learning rate."""
    pairs = list(combinations(PERIODS, 2))
    low, high = rates
    spread = [low * (high / low) ** (place / (len(pairs) - 1)) for place in range(len(pairs))]
    if arm == "none":
        return [Candidate(rate) for rate in spread]
    rng = random.Random(NAME)
    level_rates = [*LEVEL_RATES, *rng.sample(LEVEL_RATES, len(pairs) - len(LEVEL_RATES))]
    rng.shuffle(level_rates)
    rng.shuffle(spread)
    return [Candidate(*both) for both in zip(spread, pairs, level_rates, strict=True)]


def rungs(steps: int) -> tuple[tuple[int, int], ...]:
    """(candidates, steps) of every round of the search."""
    return (6, max(1, steps // 4)), (3, max(1, steps // 2)), (1, steps)


def halve(search: Search, arm: str, run: Callable[[str, Candidate, int, int], Run]) -> list[Run]:
    """An arm's search by successive halving (Jamieson and Talwalkar 2016), each round trained from the beginning;
    returns the runs of the best candidate, one a seed."""
    left: Sequence[Candidate] = candidates(arm, search.rates)
    for number, steps in rungs(search.steps):
        # Of equals the earlier: the order of candidates is always the same.
        losses = {one: run(arm, one, steps, 0).notes["validation_loss"] for one in left[:number]}
        left = sorted(losses, key=lambda one: losses[one] if math.isfinite(losses[one]) else math.inf)
    # The last round was the first seed's.
    return [run(arm, left[0], search.steps, seed) for seed in range(search.num_seeds)]


def train(search: Search, results: Results, arm: str, candidate: Candidate, steps: int, seed: int) -> Run:
    """One run, if it is not there already: a fresh model trained with its levels stepping, and measured so."""
    task = search.task
    settings: dict[str, float | int | str] = {"task": task.name, "steps": steps, "candidate": candidate.name}
    run = results.find(arm, seed, settings)
    if run is not None:
        return run
    fitted = fit(
        lambda: clocked(task.vocab_size, arm, candidate), task, FitPlan(steps), candidate.rate, seed, loss_of=loss
    )
    model = fitted.model
    assert isinstance(model, Clocked)
    notes = {
        "parameters": float(num_parameters(model)),
        "seconds": round(fitted.seconds, 1),
        "tokens": float(fitted.num_tokens),
        "validation_loss": mark_in_context(model, task.validation(seed)).loss,
        **{f"rate {name}": math.exp(float(value.detach())) for name, value in model.log_rates().items()},
    }
    return results.add(Run(NAME, arm, seed, settings, dict(_values(model, task, seed)), notes))


def clocked(vocab_size: int, arm: str, candidate: Candidate) -> Clocked:
    """A fresh model of an arm; all arms are of one size, but for two numbers of learned rates."""
    base = build("hope", Shape(vocab_size))
    assert isinstance(base, Hope)
    clocks = dict(zip(LEVELS, candidate.periods, strict=True))
    levels = tuple(
        replace(level, learning_rate=candidate.level_rate, period_tokens=clocks[level.name])
        if level.name in clocks
        else level
        for level in base.config.levels
    )
    # The same weights for every arm and candidate of a seed.
    base.config = replace(base.config, levels=levels)
    return Clocked(base, arm, candidate)


def loss(model: nn.Module, examples: Examples) -> Tensor:
    """Mean loss over what counts, but for each row's last target."""
    assert isinstance(model, Clocked)
    losses_BT, _ = model.losses(examples.tokens_BT)
    return losses_BT[examples.counts_BT[:, :-1]].mean()


@torch.no_grad()
def mark_in_context(model: Clocked, examples: Examples) -> Mark:
    """As `examples.mark`, with levels that learn on the way and without each row's last target."""
    losses_BT, hits_BT = model.losses(examples.tokens_BT)
    counts_BT = examples.counts_BT[:, :-1]
    begins_BT = counts_BT & ~functional.pad(counts_BT[:, :-1], (1, 0))
    answer = begins_BT.flatten().cumsum(0)
    num_answers = int(begins_BT.sum())
    num_wrong = len(set(answer[(counts_BT & ~hits_BT).flatten()].tolist()))
    return Mark(1 - num_wrong / max(1, num_answers), float(losses_BT[counts_BT].mean()), num_answers)


def _values(model: Clocked, task: DialogueTask, seed: int) -> Iterator[tuple[str, float]]:
    marks = {name: mark_in_context(model, examples) for name, examples in task.tests(seed)}
    yield "perplexity", math.exp(marks[ALL_TEXT].loss)
    yield "recall", marks[VALUES].accuracy
    yield "value nats", marks[VALUES].loss


def remarks(runs: list[Run]) -> str:
    """What every arm's search found, and where the learned rates went."""
    lines = [f"{arm}: {own[0].settings['candidate']}" for arm, own in by_model(runs)]
    for level in LEVELS:
        ended = [run.notes[f"rate {level}"] for run in runs if f"rate {level}" in run.notes]
        if ended:
            lines.append(f"learned rate of {level} in the end: {statistics.fmean(ended):.3g}")
    return "Best candidates: " + "; ".join(lines) + "."

"""Hope without one of its parts at a time, at equal parameters: the paper's Table 6 in small, on memory dialogues.

Perplexity is of held-out dialogues' text, recall the share of their answers' values that are right, token by token
the likeliest. Knows no way to train.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from engine.config import LevelConfig
from engine.errors import InvalidRequest
from engine.evaluation.contestants import Shape, build, num_parameters
from engine.evaluation.eager import eager
from engine.evaluation.examples import Task, mark
from engine.evaluation.fitting import FitPlan
from engine.evaluation.study import Results, Run, Study, by_model, run_study
from engine.evaluation.tasks.dialogues import TEXT as ALL_TEXT
from engine.evaluation.tasks.dialogues import VALUES, DialoguePlan, DialogueTask
from engine.model.baselines.common import fit_hidden
from engine.model.hope import Hope
from engine.training.dialogue import Stage

NAME = "ablation"
TITLE = "Ablation: Hope with one part changed, equal parameters"
TEXT = """Memory dialogues with values that training never draws: perplexity of their text, share of answers whose
value is right, and the loss of the values' tokens in nats. *w/o CMS* has one feed-forward block of equal size in
place of the levels. Levels do not learn inside the text here (the table of clocks): they are three feed-forward
blocks in a row. Recall is found all at once, by one row sooner than by another; so that most find it in the steps there
are, all begin with wider embeddings."""
PERCENT = False
STEPS = 1500
RATES = (6e-3,)
PLAN = DialoguePlan(Stage(64, 8, 2, 0.0), num_test_rows=256)
HOPE, NO_LEVELS = "hope", "w/o CMS"
PERPLEXITY, RECALL, VALUE_LOSS = "perplexity", "recall", "value nats"

# What each row changes of `ModelConfig`; "w/o CMS" is built apart.
CHANGES: dict[str, dict[str, Any]] = {
    HOPE: {},
    "w/o DGD": {"write_rule": "gradient"},
    "with momentum": {"momentum": True},
    "w/o decay": {"retention": False},
    NO_LEVELS: {},
    "w/o adaptive k": {"adaptive": ("value", "query", "eta", "alpha")},
    "w/o adaptive v": {"adaptive": ("key", "query", "eta", "alpha")},
    "w/o adaptive q": {"adaptive": ("key", "value", "eta", "alpha")},
    "DGD of one layer": {"write_rule": "dgd"},
    "steps up to 1": {"largest_step": 1.0},
    "dot objective": {"objective": "dot"},
    "boundary read": {"read": "boundary"},
    "decay towards zero": {"decay_towards": "zero"},
    "independent chain": {"chain": "independent"},
}
# Table 6: perplexity and reasoning accuracy in percent. The paper's Hope has momentum; ours has it only where the row
# says so, so that there the rows compare the other way round.
PAPER = {
    "Hope": (12.24, 58.1),
    "w/o DGD": (13.41, 56.5),
    "w/o momentum": (13.58, 56.9),
    "w/o weight decay": (13.71, 57.2),
    "w/o CMS": (13.04, 57.3),
    "w/o inner-projection k": (13.77, 56.9),
    "w/o inner-projection v": (13.90, 55.1),
    "w/o inner-projection q": (12.19, 57.4),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags; its rows are forms of Hope, so --models does not choose among them."""
    parser.add_argument(
        "--row", action="append", choices=list(CHANGES), metavar="NAME", help=f"only these: {', '.join(CHANGES)}"
    )


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing of the table; returns the runs that count."""
    task = DialogueTask(PLAN)
    shape = Shape(task.vocab_size)
    makers = [(row, maker(row, shape)) for row in given.row or CHANGES]
    plan = FitPlan(given.steps or STEPS, tuple(given.rates or RATES))
    return run_study(Study(NAME, task, makers, plan, given.seeds, text_and_values), results)


def maker(row: str, shape: Shape) -> Callable[[], nn.Module]:
    """How to build the model of a row, with as many parameters as Hope has.

    Raises:
        InvalidRequest: there is no such row.
    """
    if row not in CHANGES:
        raise InvalidRequest(f"'{row}' is none of {', '.join(CHANGES)}", param="row")

    def make() -> nn.Module:
        return eager(_without_levels(shape) if row == NO_LEVELS else build(HOPE, shape, **CHANGES[row]))

    return make


def text_and_values(model: nn.Module, task: Task, seed: int) -> Iterator[tuple[str, float]]:
    """Perplexity of held-out dialogues' text, share of right values, mean loss of the values' tokens in nats."""
    marks = {name: mark(model, examples, rows=16) for name, examples in task.tests(seed)}  # type: ignore[arg-type]
    yield PERPLEXITY, math.exp(marks[ALL_TEXT].loss)
    yield RECALL, marks[VALUES].accuracy
    yield VALUE_LOSS, marks[VALUES].loss


def remarks(runs: list[Run]) -> str:
    """Every row against Hope, and the paper's rows against its Hope."""
    found = {row: statistics.fmean(run.values[PERPLEXITY] for run in own) for row, own in by_model(runs)}
    lines = []
    if HOPE in found:
        changes = (f"{row} x{value / found[HOPE]:.3f}" for row, value in found.items() if row != HOPE)
        lines.append(f"Perplexity over Hope's: {', '.join(changes)}.")
    whole = PAPER["Hope"][0]
    rows = (f"{row} {loss} / {share} (x{loss / whole:.3f})" for row, (loss, share) in PAPER.items())
    lines.append(f"The paper's Table 6, perplexity / reasoning accuracy in percent: {', '.join(rows)}.")
    lines.append(
        "The paper's Hope has momentum; ours has none, so *with momentum* stands against its w/o momentum the other "
        "way round."
    )
    return "\n".join(lines)


def _without_levels(shape: Shape) -> Hope:
    """Hope with one plain feed-forward block in place of the CMS."""
    whole = build(HOPE, shape)
    assert isinstance(whole, Hope)

    def make(hidden: int) -> Hope:
        return Hope(replace(whole.config, levels=(LevelConfig("cms.fixed", hidden, "training"),)))

    return make(fit_hidden(make, num_parameters(whole)))

"""The table of bAbI's facts in long stories: accuracy by length.

Knows its task and its sizes; training and keeping of runs are `study.py`'s.
"""

from __future__ import annotations

import argparse
from functools import partial

from engine.evaluation.contestants import Shape
from engine.evaluation.eager import build_eager
from engine.evaluation.fitting import FitPlan
from engine.evaluation.study import Results, Run, Study, run_study
from engine.evaluation.tasks.babi import LENGTHS, Babi

NAME = "babi"
TITLE = "Facts scattered in a story (bAbI qa1, as in BABILong)"
TEXT = """People move from place to place in sentences scattered over a long text; at its end one of them is asked
for. Models were trained on texts of 128 to 1024 tokens. With `--data` the tests are questions of bAbI's own file in
stories, else both come from generators."""
STEPS, RATES = 1000, (6e-3,)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags."""
    parser.add_argument("--rows", type=int, default=16, metavar="N", help="test rows a length (default 16)")
    parser.add_argument(
        "--lengths",
        type=lambda text: tuple(int(length) for length in text.split(",")),
        default=LENGTHS,
        metavar="TOKENS",
        help=f"lengths tested, by commas (default {','.join(map(str, LENGTHS))})",
    )


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count.

    Raises:
        InvalidRequest: `--data` lacks the stories or bAbI's file.
    """
    task = Babi(given.data, given.lengths, given.rows)
    shape = Shape(task.vocab_size, chunk=64)
    makers = [(name, partial(build_eager, name, shape)) for name in given.models]
    plan = FitPlan(given.steps or STEPS, given.rates or RATES, warmup=0.04)
    return run_study(Study(NAME, task, makers, plan, given.seeds), results)

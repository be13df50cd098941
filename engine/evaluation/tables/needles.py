"""The table of needles in a haystack: accuracy by kind of needle and length of the text.

Knows its task and its sizes; training and keeping of runs are `study.py`'s.
"""

from __future__ import annotations

import argparse
from functools import partial

from engine.evaluation.contestants import Shape
from engine.evaluation.eager import build_eager
from engine.evaluation.fitting import FitPlan
from engine.evaluation.study import Results, Run, Study, run_study
from engine.evaluation.tasks.needles import LENGTHS, Needles

NAME = "needles"
TITLE = "Needles in a haystack"
TEXT = """A number is told once in a long text and asked for at its end, as in RULER: S-1 in five sentences repeated,
S-2 in prose, S-3 a long code in prose; MK one of four keys, MQ four keys asked, MV four values of one key. Models
were trained on texts of 256 to 2048 tokens; keys, values and prose of the tests are not in training. Recall is found
all at once, in a drill of bare facts that training begins with: who has not found it by then names nothing."""
STEPS, RATES = 2400, (3e-3,)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags."""
    parser.add_argument("--rows", type=int, default=16, metavar="N", help="test rows of S-1; others half (default 16)")
    parser.add_argument(
        "--lengths",
        type=lambda text: tuple(int(length) for length in text.split(",")),
        default=LENGTHS,
        metavar="TOKENS",
        help=f"lengths tested, by commas (default {','.join(map(str, LENGTHS))})",
    )
    parser.add_argument(
        "--longest", type=int, default=32768, metavar="TOKENS", help="one more length for S-1, or 0 (default 32768)"
    )


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count.

    Raises:
        InvalidRequest: `--data` lacks the stories.
    """
    task = Needles(given.data, given.lengths, given.longest or None, given.rows)
    shape = Shape(task.vocab_size, chunk=64)
    makers = [(name, partial(build_eager, name, shape)) for name in given.models]
    plan = FitPlan(given.steps or STEPS, given.rates or RATES, warmup=0.04)
    return run_study(Study(NAME, task, makers, plan, given.seeds), results)

"""The table of multi-query associative recall: accuracy by number of pairs.

Knows its task and its sizes; training and keeping of runs are `study.py`'s.
"""

from __future__ import annotations

import argparse
from functools import partial

from engine.evaluation.contestants import Shape
from engine.evaluation.eager import build_eager
from engine.evaluation.fitting import FitPlan
from engine.evaluation.study import Results, Run, Study, run_study
from engine.evaluation.tasks.associative import AssociativeRecall

NAME = "mqar"
TITLE = "Multi-query associative recall"
TEXT = """Pairs of a key and a value are told, then every key is asked once, among filler; the share of right
values, by number of pairs. One model of each kind is trained on all numbers of pairs, few of them first. Which key
has which value in the tests was never so in training."""
STEPS, RATES = 1500, (6e-3, 1e-2)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags."""
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="test rows a condition (default 64)")


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count."""
    task = AssociativeRecall(num_tests=given.rows)
    shape = Shape(task.vocab_size, chunk=64)
    makers = [(name, partial(build_eager, name, shape)) for name in given.models]
    plan = FitPlan(given.steps or STEPS, given.rates or RATES, warmup=0.04)
    return run_study(Study(NAME, task, makers, plan, given.seeds), results)

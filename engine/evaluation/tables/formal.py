"""The table of formal languages: share of strings right in all prefixes, for short strings and for longer ones.

Knows its task and its sizes; training and keeping of runs are `study.py`'s.
"""

from __future__ import annotations

import argparse
from functools import partial

from engine.evaluation.contestants import Shape, build
from engine.evaluation.fitting import FitPlan
from engine.evaluation.study import Results, Run, Study, run_study
from engine.evaluation.tasks.formal import FormalLanguages

NAME = "formal"
TITLE = "Formal languages"
TEXT = """Share of strings for which every prefix is told right: whether it is in the language, or which symbols may
follow. Bin 0 has strings as long as training's, bin 1 up to twice as long. All languages are learned by one model."""
STEPS, RATES = 1600, (6e-3,)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags."""
    parser.add_argument(
        "--longest", type=int, default=16, metavar="N", help="symbols of the longest training string (default 16)"
    )
    parser.add_argument("--chunk", type=int, default=1, metavar="N", help="tokens between two memory updates of Hope")


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count."""
    task = FormalLanguages(given.longest)
    # The chunk is Hope's and Titans' shape: a run with another is another run.
    task.name += f", chunk {given.chunk}"
    shape = Shape(task.vocab_size, width=32, num_layers=1, num_heads=1, chunk=given.chunk)
    makers = [(name, partial(build, name, shape)) for name in given.models]
    plan = FitPlan(given.steps or STEPS, given.rates or RATES)
    return run_study(Study(NAME, task, makers, plan, given.seeds), results)

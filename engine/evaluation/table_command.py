"""`hope eval TABLE`: measures one table of the results, run by run, and `hope eval render` writes them all down.

Knows flags and files; what a table measures is in `tables/`, how it is written in `report.py`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from engine.evaluation.contestants import CONTESTANTS
from engine.evaluation.report import markdown_table, render
from engine.evaluation.study import Results, to_json
from engine.evaluation.tables import TABLES
from engine.from_file import is_file

RESULTS = Path("docs/results")


def table_module(name: str) -> ModuleType:
    """The module of a table."""
    return import_module(f"engine.evaluation.tables.{name}")


def run_table(name: str, argv: Sequence[str]) -> int:
    """Measures what is missing of a table, prints it and keeps it; returns the exit status."""
    module = table_module(name)
    parser = argparse.ArgumentParser(
        f"hope eval {name}",
        description=f"{module.TITLE}.\n\n{getattr(module, 'TEXT', '')}\n\n"
        "Every finished run is kept in the results folder: stop it, start it again, and it goes on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(parser)
    module.arguments(parser)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    results = Results(given.results / f"{name}.jsonl")
    runs = module.measure(given, results)
    command = shlex.join(["hope", "eval", name, *argv])
    summary = {"table": name, "command": command, "runs": [to_json(run) for run in runs]}
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(markdown_table(runs, percent=getattr(module, "PERCENT", True)))
    return 0


def run_render(argv: Sequence[str]) -> int:
    """Writes docs/RESULTS.md and a plot of each table from the results folder; returns the exit status."""
    parser = argparse.ArgumentParser("hope eval render", description="Write every measured table down, with plots.")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help=f"default {RESULTS}")
    parser.add_argument("--out", type=Path, default=Path("docs/RESULTS.md"), metavar="FILE", help="the page to write")
    given = parser.parse_args(argv)
    found = [(table_module(name), given.results / f"{name}.json") for name in TABLES]
    num_tables = render([(module, path) for module, path in found if path.exists()], given.out)
    print(f"{given.out}: {num_tables} tables")
    return 0


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        type=_models,
        default=list(CONTESTANTS),
        metavar="NAMES",
        help=f"contestants, by commas (default {','.join(CONTESTANTS)})",
    )
    parser.add_argument("--seeds", type=_positive, default=3, metavar="N", help="seeds 0 to N-1 (default 3)")
    parser.add_argument("--steps", type=_positive, metavar="N", help="training steps a run (default: the table's)")
    parser.add_argument(
        "--rates",
        type=lambda text: tuple(float(rate) for rate in text.split(",")),
        metavar="RATES",
        help="learning rates tried, by commas (default: the table's)",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of public data, where a table needs it")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help=f"default {RESULTS}")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="intra-op threads (default 1)")


def _models(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        # A name misread would show when the models before it are trained.
        if name and name not in CONTESTANTS and not is_file(name):
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(CONTESTANTS)}, nor a FILE.py")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)

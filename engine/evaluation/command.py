"""`hope eval`: one command a table; results as JSON, and as a table on the screen.

Knows how to run and to write; what is measured is in the modules beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from engine.evaluation.recall import Asked, RecallPlan, measure_recall
from engine.evaluation.table_command import run_render, run_table
from engine.evaluation.tables import TABLES
from engine.evaluation.telling import SOURCES, UNSEEN_WORDINGS

DESCRIPTION = """Measure what the model remembers, and what the models it is compared with do.

  hope eval recall                     facts with values never seen in training, asked 1, 5 and 20 other turns later
  hope eval recall --phrases held-out  the same in wordings that training never saw
  hope eval recall --relations open      relations of words that training never saw
  hope eval recall --relations everyday  sentences as users write them, none of them in training
  hope eval recall --off cms.fast      with a level switched off

Each seed tells 50 facts in 10 sessions. Results go to --out as JSON and to the screen as a table.

Tables of all models, each resumable, each with its own --help; results lie in docs/results:
  hope eval {tables}
  hope eval render                     write docs/RESULTS.md from what was measured"""


def run_evaluation(argv: Sequence[str]) -> int:
    """Runs one evaluation; returns the exit status."""
    if argv and argv[0] in TABLES:
        return run_table(argv[0], argv[1:])
    if argv and argv[0] == "render":
        return run_render(argv[1:])
    given = _parser().parse_args(argv)
    return _run_recall(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hope eval",
        description=DESCRIPTION.format(tables=" | ".join(TABLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=["recall", *TABLES, "render"],
        default="recall",
        help="the table to measure (default recall)",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="default: the bundled one")
    parser.add_argument("--seeds", type=_count, default=3, metavar="N", help="runs with seeds 0 to N-1 (default 3)")
    parser.add_argument("--sessions", type=_count, default=10, metavar="N", help="sessions a run (default 10)")
    parser.add_argument("--facts", type=_count, default=5, metavar="N", help="facts a session (default 5)")
    parser.add_argument("--relations", choices=SOURCES, default="training", help="what the facts are about")
    parser.add_argument("--phrases", choices=["training", "held-out"], default="training", help="their wordings")
    parser.add_argument("--off", action="append", default=[], metavar="LEVEL", help="switch a CMS level off")
    parser.add_argument(
        "--rate", action="append", default=[], type=_rate, metavar="LEVEL=RATE", help="another learning rate of a level"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write results there as JSON")
    parser.add_argument("--show", action="store_true", help="print every question and reply")
    return parser


def _run_recall(given: argparse.Namespace) -> int:
    rates = [*((level, 0.0) for level in given.off), *given.rate]
    plan = RecallPlan(
        num_sessions=given.sessions,
        facts_per_session=given.facts,
        held_out_phrases=given.phrases == "held-out",
        relations=given.relations,
        rates=tuple(rates),
    )
    runs = [
        asyncio.run(measure_recall(plan, seed, given.checkpoint))
        for seed in tqdm(range(given.seeds), unit="seed", desc="recall")
    ]
    if given.show:
        for asked in (one for run in runs for one in run):
            mark = "+" if asked.recalled else "-"
            print(f"{mark} {asked.gap:3d}  {asked.told}  |  {asked.question}  ->  {asked.reply}")
    summary = summarise(plan, runs)
    print(_table(summary))
    if given.out:
        given.out.write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 up")
    return int(text)


def _rate(text: str) -> tuple[str, float]:
    level, _, rate = text.partition("=")
    try:
        return level, float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not LEVEL=RATE, as in cms.fast=0.5") from None


def summarise(plan: RecallPlan, runs: Sequence[Sequence[Asked]]) -> dict[str, object]:
    """Recall by gap: mean and standard deviation over runs, and each run's."""
    rows = []
    for gap in plan.gaps:
        shares = []
        for run in runs:
            hits = [asked.recalled for asked in run if asked.gap == gap]
            shares.append(sum(hits) / len(hits))
        spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
        rows.append({"turns": gap, "recall": statistics.mean(shares), "spread": spread, "runs": shares})
    return {
        "table": "recall",
        "relations": plan.relations,
        "phrases": "held-out" if plan.held_out_phrases or plan.relations in UNSEEN_WORDINGS else "training",
        "facts_a_run": plan.num_sessions * plan.facts_per_session,
        "rates": dict(plan.rates),
        "rows": rows,
    }


def _table(summary: dict[str, object]) -> str:
    rows = summary["rows"]
    assert isinstance(rows, list)
    lines = ["other turns   recall   spread"]
    lines += [f"{row['turns']:11d}   {row['recall']:6.1%}   {row['spread']:6.1%}" for row in rows]
    return "\n".join(lines)

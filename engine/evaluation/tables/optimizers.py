"""Optimizers of the paper on a small real task: next-character prediction by a small MLP (`characters.py`).

Each optimizer tries the same learning rates with every seed; the rate with the least mean loss is its row.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from engine.errors import InvalidRequest
from engine.evaluation.characters import CASES, Case, CharacterPlan, characters, train
from engine.evaluation.study import Results, Run

NAME = "optimizers"
TITLE = "Optimizers: next-character prediction"
TEXT = """A small MLP predicts the next character of a text from the last sixteen; the loss is that of the text's last
tenth, in nats per character. Every optimizer gets the same steps, batches, seeds and learning rates; the best rate
is chosen on the same tenth, alike for all. *m3 (as printed)* is Algorithm 1 to the letter, *dgd* eq. 56 as an
optimizer of training (its fixed point is W x = u, not a zero gradient; its head is left to AdamW)."""
PERCENT = False
RATES = (0.003, 0.03, 0.3)
TEXT_FILE = "tinyshakespeare/input.txt"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The text may be another one; an optimizer of one's own is a file with `make(model, learning_rate)`."""
    parser.add_argument("--text", type=Path, metavar="FILE", help=f"the text (default: {TEXT_FILE} under --data)")
    parser.add_argument(
        "--optimizer", action="append", default=[], metavar="FILE.py", help="one more optimizer, repeatable"
    )


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; every optimizer's best rate, all seeds."""
    if given.text is None and given.data is None:
        raise InvalidRequest("this table needs a text: --text FILE, or --data FOLDER", param="data")
    text = (given.text or given.data / TEXT_FILE).read_text("utf-8")
    plan = CharacterPlan(num_steps=given.steps or CharacterPlan.num_steps)
    cases = {**CASES, **{Path(path).stem: Case(path) for path in given.optimizer}}
    return study(text, plan, cases, given.rates or RATES, given.seeds, results)


def study(
    text: str, plan: CharacterPlan, cases: Mapping[str, Case], rates: Sequence[float], num_seeds: int, results: Results
) -> list[Run]:
    """As `measure`, of any cases."""
    tokens, num_characters = characters(text, plan)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    counted: list[Run] = []
    bar = tqdm(total=len(cases) * len(rates) * num_seeds, unit="run", desc=NAME)
    for name, case in cases.items():
        by_rate: list[list[Run]] = []
        for rate in rates:
            settings: dict[str, float | int | str] = {"text": digest, "steps": plan.num_steps, "rate": rate}
            runs = []
            for seed in range(num_seeds):
                run = results.find(name, seed, settings)
                if run is None:
                    loss, seconds = train(tokens, num_characters, plan, case, rate, seed)
                    run = results.add(Run(NAME, name, seed, settings, {"loss": loss}, {"seconds": seconds}))
                runs.append(run)
                bar.update()
            by_rate.append(runs)
        counted += min(by_rate, key=lambda runs: statistics.fmean(run.values["loss"] for run in runs))
    bar.close()
    return counted


def remarks(runs: list[Run]) -> str:
    """The rates that were best."""
    best = {run.model: run.settings["rate"] for run in runs}
    return "Best learning rates: " + ", ".join(f"{name} {rate:g}" for name, rate in best.items()) + "."

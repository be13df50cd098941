"""Tables and plots from finished runs: a row a contestant, a column a condition, mean and spread over seeds.

Knows runs and files; nothing is measured here. Plots need matplotlib (extra `plots`).
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from engine.evaluation.study import Run, by_model, from_json
from engine.model.weights import bundled_checkpoint, checkpoint_digest

HEAD = """# Results

Every figure here was measured by the command above its table and can be measured again by it. Mean and standard
deviation over seeds; a dash where nothing was measured. `hope eval render` wrote this page from the files in
`docs/results`, which hold every single run.
"""


# With more conditions than these a table is turned: a row a condition.
MOST_COLUMNS = 16


def markdown_table(runs: Sequence[Run], *, percent: bool) -> str:
    """A Markdown table of runs: contestants by conditions, with their number of parameters and seeds."""
    conditions = list(dict.fromkeys(name for run in runs for name in run.values))
    rows = [["model", "parameters", "seeds", *conditions]]
    for name, own in by_model(runs):
        size = own[0].notes.get("parameters")
        cells = [_cell([run.values[c] for run in own if c in run.values], percent) for c in conditions]
        seeds = len({run.seed for run in own})
        rows.append([name, f"{size:,.0f}" if size else "–", str(seeds), *cells])
    if len(conditions) > MOST_COLUMNS:
        rows = [list(row) for row in zip(*rows, strict=True)]
    rule = f"|---|{'---:|' * (len(rows[0]) - 1)}"
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, rule, *body])


def render(tables: Sequence[tuple[ModuleType, Path]], out: Path) -> int:
    """Writes the page and a plot beside each table's results; returns the number of tables."""
    parts = [HEAD]
    for module, path in tables:
        summary = json.loads(path.read_text())
        runs = [from_json(run) for run in summary["runs"]]
        percent = getattr(module, "PERCENT", True)
        plot = path.with_suffix(".svg")
        _plot(runs, module.TITLE, percent, plot)
        parts.append(f"## {module.TITLE}\n\n{getattr(module, 'TEXT', '').strip()}\n\n`{summary['command']}`\n")
        parts.append(markdown_table(runs, percent=percent) + "\n")
        parts += _earlier_checkpoint(runs)
        remarks = getattr(module, "remarks", None)
        if remarks is not None:
            parts.append(remarks(runs).strip() + "\n")
        parts.append(f"![{module.TITLE}]({_beside(plot, out)})\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts))
    return len(tables)


def _earlier_checkpoint(runs: Sequence[Run]) -> list[str]:
    """A word of warning where the bundled checkpoint is no longer the one that was measured."""
    measured = {str(run.settings["checkpoint"]) for run in runs if "checkpoint" in run.settings}
    if not measured or checkpoint_digest(bundled_checkpoint()) in measured:
        return []
    return [f"Measured with an earlier checkpoint ({', '.join(sorted(measured))}); the bundled one may differ.\n"]


def _beside(plot: Path, page: Path) -> str:
    """The plot's path as the page links it."""
    return Path(os.path.relpath(plot, page.parent)).as_posix()


def _cell(values: list[float], percent: bool) -> str:
    numbers = [value for value in values if math.isfinite(value)]
    if not numbers:
        return "–"
    mean, spread = statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    if percent:
        return f"{mean:.1%} ± {100 * spread:.1f}" if len(numbers) > 1 else f"{mean:.1%}"
    digits = 0 if abs(mean) >= 1000 else 2 if abs(mean) >= 10 else 3
    return f"{mean:,.{digits}f} ± {spread:,.{digits}f}" if len(numbers) > 1 else f"{mean:,.{digits}f}"


def _plot(runs: Sequence[Run], title: str, percent: bool, path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "hope"
    conditions = list(dict.fromkeys(name for run in runs for name in run.values))
    figure, axes = plt.subplots(figsize=(max(6.0, 0.7 * len(conditions) + 3.0), 4.0))
    for name, own in by_model(runs):
        at = [place for place, c in enumerate(conditions) if any(c in run.values for run in own)]
        columns = [[run.values[conditions[place]] for run in own if conditions[place] in run.values] for place in at]
        if not all(math.isfinite(value) for column in columns for value in column):
            continue
        means = [statistics.mean(column) for column in columns]
        spreads = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
        axes.errorbar(at, means, spreads, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
    axes.set_xticks(range(len(conditions)), conditions, rotation=35, ha="right", fontsize=8)
    axes.set_title(title)
    if percent:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    elif min(value for run in runs for value in run.values.values()) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

"""Language modelling: every contestant trained alike on the same public text, perplexity on text it never saw.

Perplexity is per token of the tokenizer, bits are per byte of UTF-8 (`tasks/language.py` says which bytes), so that
models with other tokenizers compare. Knows no way to train.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from engine.errors import InvalidRequest
from engine.evaluation.contestants import Shape, build, num_parameters
from engine.evaluation.examples import Task, mark
from engine.evaluation.fitting import FitPlan
from engine.evaluation.study import Results, Run, Study, by_model, run_study
from engine.evaluation.tasks.language import WIKITEXT, LanguagePlan, LanguageTask
from engine.model.weights import TOKENIZER_FILE, bundled_checkpoint, fingerprint, load_checkpoint
from engine.tokenizer import Tokenizer

NAME = "language"
TITLE = "Language modelling: perplexity of text that was never trained on"
TEXT = """Perplexity per token, and bits per byte of UTF-8. Models are trained alike on public dialogues, stories and
fairy tales and read WikiText-2, which none was trained on, and dialogues and stories held out by a hash of their
text. Rows are read from an empty memory and are as long as training's; *wikitext stream* is the test with memory
carried over longer streams. Special tokens are read and not guessed; a line's bytes are those of its text, its end
and the space before it, and `<unk>` is five bytes as any others. *checkpoint*, where it is there, is a model that was
trained elsewhere, with its own tokenizer: compare bits per byte."""
PERCENT = False
STEPS = 240
RATES = (2e-3, 6e-3)
VALID, TEST = WIKITEXT
STREAM, BITS = "wikitext stream", "bits per byte wikitext"
# Table 2 at 1.3B parameters and 100B tokens: Hope's WikiText perplexity over that of others.
PAPER_RATIOS = {"titans": 0.922, "samba": 0.891, "transformer": 0.803}
READ_AT_ONCE = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="add the row 'checkpoint': this one on WikiText, as it is. With --models '' it is the only one",
    )
    parser.add_argument("--width", type=int, default=64, help="of every contestant (default 64)")
    parser.add_argument("--layers", type=int, default=2, help="of every contestant (default 2)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a training step (default 8)")
    parser.add_argument("--row-tokens", type=int, default=256, metavar="N", help="tokens of a row (default 256)")
    parser.add_argument(
        "--stream-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="tokens over which 'wikitext stream' carries memory (default 4096; attention's grows with them)",
    )
    parser.add_argument(
        "--wikitext-tokens",
        type=int,
        default=131_072,
        metavar="N",
        help="measure so much of each half of WikiText-2 (default 131072; 0: all)",
    )


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing of the table; returns the runs that count.

    Raises:
        InvalidRequest: no data folder, or it lacks a file; no such checkpoint.
    """
    if given.data is None:
        raise InvalidRequest("the table 'language' needs public text: give its folder with --data", param="data")
    sizes = LanguagePlan(given.rows, given.row_tokens, given.stream_tokens, given.wikitext_tokens)
    task = LanguageTask(given.data, Tokenizer.load(bundled_checkpoint() / TOKENIZER_FILE), sizes)
    task.name += f", width {given.width}, {given.layers} layers, {sizes.stream_tokens}/{sizes.wikitext_tokens}"
    heads = max(2, given.width // 64)
    shape = Shape(task.vocab_size, given.width, given.layers, heads)
    makers = [(name, partial(build, name, shape)) for name in given.models if name]
    plan = FitPlan(given.steps or STEPS, tuple(given.rates or RATES))
    runs = run_study(Study(NAME, task, makers, plan, given.seeds, perplexities), results) if makers else []
    return [*runs, *([_checkpoint(given.checkpoint, given.data, sizes, results)] if given.checkpoint else [])]


def perplexities(model: nn.Module, task: Task, seed: int) -> Iterator[tuple[str, float]]:
    """Perplexity per token under every condition; then bits per byte of WikiText-2's test and of dialogues."""
    assert isinstance(task, LanguageTask)
    nats = {}
    for condition, examples in task.tests(seed):
        rows = min(READ_AT_ONCE, examples.tokens_BT.shape[0])
        found = mark(model, examples, piece=task.plan.num_tokens, rows=rows)  # type: ignore[arg-type]
        nats[condition] = found.loss * int(examples.counts_BT.sum())
        yield condition, math.exp(found.loss)
    for condition, name in ((TEST, BITS), ("dialogues", "bits per byte dialogues")):
        yield name, nats[condition] / math.log(2) / task.passages[condition].num_bytes


def remarks(runs: list[Run]) -> str:
    """Hope's WikiText perplexity over that of others, beside the paper's."""
    found = {name: statistics.fmean(run.values[TEST] for run in own) for name, own in by_model(runs)}
    ratios = [
        f"{found['hope'] / found[name]:.3f} to {name} ({paper})"
        for name, paper in PAPER_RATIOS.items()
        if "hope" in found and name in found
    ]
    if not ratios:
        return ""
    return (
        "Hope's perplexity of WikiText-2's test in ratio, and in brackets the paper's (Table 2, 1.3B parameters, 100B "
        f"tokens): {', '.join(ratios)}."
    )


def _checkpoint(folder: Path, data: Path, sizes: LanguagePlan, results: Results) -> Run:
    """The row of a given checkpoint, WikiText only."""
    model, tokenizer = load_checkpoint(folder)
    task = LanguageTask(data, tokenizer, replace(sizes, held_out_tokens=1))
    settings: dict[str, float | int | str] = {
        "task": f"{task.name}, {sizes.stream_tokens}/{sizes.wikitext_tokens}",
        "checkpoint": fingerprint(model),
    }
    run = results.find("checkpoint", 0, settings)
    if run is None:
        measured = perplexities(model, task, 0)
        values = {name: value for name, value in measured if "wikitext" in name}
        notes = {"parameters": float(num_parameters(model))}
        run = results.add(Run(NAME, "checkpoint", 0, settings, values, notes))
    return run

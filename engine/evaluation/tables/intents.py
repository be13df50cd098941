"""Table: intents that come task by task, learned in a memory, in weights, in weights held by springs, or together.

All ways start from one trained model and see the same utterances. Knows how runs are made and kept; how a stream is
learned is in `incremental.py`, what it is made of in `tasks/intents.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from engine.config import CMS_FAST, CMS_MEDIUM
from engine.errors import InvalidRequest
from engine.evaluation.contestants import Shape, num_parameters
from engine.evaluation.eager import build_eager
from engine.evaluation.examples import mark
from engine.evaluation.fitting import FitPlan, Fitted, best_rate, fit
from engine.evaluation.incremental import (
    Matrix,
    WeightsPlan,
    conditions,
    in_memory,
    in_weights,
    nearest_centroid,
)
from engine.evaluation.study import Results, Run, beginning
from engine.evaluation.tasks.intents import (
    IntentEpisodes,
    StreamPlan,
    corpus_of,
    read_clinc,
    read_csv,
    split_intents,
)
from engine.model.hope import Hope
from engine.model.weights import TOKENIZER_FILE, bundled_checkpoint
from engine.tokenizer import Tokenizer

NAME = "intents"
TITLE = "Intents that come class by class"
TEXT = """Class-incremental intent classification: after each task every class so far is asked, and the answer is the
likeliest of the labels shown so far. Each contestant is first trained on episodes of other classes with labels drawn
anew (CLINC150: 100 classes, none of them tested; the 50 tested are the first by a hash of their names, and each seed
takes its own). "In memory" then reads the tested classes once and no weight changes; "in memory, levels" lets Hope's
session levels take their step after each task too. From the same trained weights, "fine-tuned" trains on each task in
turn, "elastic" does so with elastic weight consolidation, and "joint" with all tasks so far: the upper bound of
learning by weights. "(nearest centroid)" compares shared tokens and learns nothing. Utterances are cut to their rarest
tokens. Forgetting: what was right after its task less what is right at the end, mean over tasks."""

STEPS, RATES = 2000, (3e-3,)
NUM_TESTED, NUM_LABELS, EASY_SHARE = 50, 24, 0.6
LEARNS_BY_WEIGHTS = ("transformer", "hope")
LEVELS = (CMS_FAST, CMS_MEDIUM)
Settings = dict[str, float | int | str]


def arguments(parser: argparse.ArgumentParser) -> None:
    """This table's own flags."""
    parser.add_argument("--csv", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="CSV files: text,category")
    parser.add_argument("--tasks", type=int, default=10, metavar="N", help="tasks of a stream (default 10)")
    parser.add_argument("--classes", type=int, default=2, metavar="N", help="classes a task (default 2)")
    parser.add_argument("--shots", type=int, default=5, metavar="N", help="utterances shown a class (default 5)")
    parser.add_argument("--queries", type=int, default=10, metavar="N", help="utterances asked a class (default 10)")
    parser.add_argument("--tested", type=int, default=NUM_TESTED, metavar="N", help="classes kept for tests")
    parser.add_argument(
        "--utterance-tokens", type=int, default=6, metavar="N", help="an utterance's rarest tokens; 0 keeps all"
    )
    parser.add_argument("--row-tokens", type=int, default=128, metavar="N", help="of a training row (default 128)")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="of the contestants (default 64)")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="of the contestants (default 2)")
    parser.add_argument("--task-steps", type=int, default=20, metavar="N", help="weight steps a task (default 20)")
    parser.add_argument("--task-rate", type=float, default=1e-3, metavar="RATE", help="of weight steps (default 1e-3)")
    parser.add_argument("--strength", type=float, default=1e4, metavar="X", help="of the elastic penalty")


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count: every contestant in each way, at its best learning rate.

    Raises:
        InvalidRequest: the data is missing or has too few classes, or a contestant is unknown.
    """
    task = _task(given)
    plan = StreamPlan(given.tasks, given.classes, given.shots, given.queries)
    counted = []
    for seed in range(given.seeds):
        settings = _settings(task, plan)
        run = results.find("(nearest centroid)", seed, settings)
        if run is None:
            values = conditions(nearest_centroid(task.stream(seed, plan)))
            run = results.add(Run(NAME, "(nearest centroid)", seed, settings, values))
        counted.append(run)
    for name in given.models:
        tried = [(rate, _runs(given, results, task, plan, name, rate, 0)) for rate in given.rates or RATES]
        rate = best_rate([(rate, runs[0].notes["validation_loss"]) for rate, runs in tried])
        seeds = [_runs(given, results, task, plan, name, rate, seed) for seed in range(given.seeds)]
        counted += [runs[way] for way in range(len(seeds[0])) for runs in seeds]
    return counted


def _task(given: argparse.Namespace) -> IntentEpisodes:
    if min(given.tasks, given.classes, given.shots, given.queries) < 1:
        raise InvalidRequest("tasks, classes, shots and queries are numbers from 1 up")
    train, test = (read_csv(given.csv[0]), read_csv(given.csv[1])) if given.csv else read_clinc(given.data)
    num_tested = max(given.tested, given.tasks * given.classes)
    trained, tested = split_intents([intent for _, intent in train], num_tested)
    tokenizer = Tokenizer.load(bundled_checkpoint() / TOKENIZER_FILE)
    corpus = corpus_of(train, test, trained, tokenizer, given.utterance_tokens)
    steps = given.steps or STEPS
    num_labels = max(NUM_LABELS, given.tasks * given.classes)
    return IntentEpisodes(
        *(corpus, trained, tested, tokenizer.vocab_size, num_labels),
        row_tokens=given.row_tokens,
        easy_steps=round(steps * EASY_SHARE),
    )


def _settings(task: IntentEpisodes, plan: StreamPlan) -> Settings:
    classes = f"{len(task.trained)}+{len(task.tested)}"
    stream = f"{plan.num_tasks}x{plan.classes_per_task}x{plan.shots}, {plan.queries} asked"
    return {"task": task.name, "classes": classes, "stream": stream}


def _runs(
    given: argparse.Namespace,
    results: Results,
    task: IntentEpisodes,
    plan: StreamPlan,
    name: str,
    rate: float,
    seed: int,
) -> list[Run]:
    """One trained contestant in all its ways of learning; in memory first. What is kept already is not run again."""
    weights, shape = WeightsPlan(given.task_steps, given.task_rate), Shape(task.vocab_size, given.width, given.layers)
    make = partial(build_eager, name, shape)
    settings: Settings = {
        **_settings(task, plan),
        **{"steps": given.steps or STEPS, "rate": rate, "width": given.width, "layers": given.layers},
        **{"task_steps": weights.steps, "task_rate": weights.rate, "strength": given.strength},
        "begins": beginning(make, seed),
    }
    ways = list(_ways(name, task, plan, weights, given.strength, seed))
    found = [results.find(f"{name}, {way}", seed, settings) for way, _ in ways]
    if all(found):
        return [run for run in found if run is not None]
    fitted = fit(make, task, FitPlan(given.steps or STEPS), rate, seed)
    notes = _notes(fitted, task, seed)
    runs = []
    for (way, learn_stream), run in zip(ways, found, strict=True):
        if run is None:
            values = conditions(learn_stream(fitted.model))
            run = results.add(Run(NAME, f"{name}, {way}", seed, settings, values, notes))
        runs.append(run)
    return runs


def _ways(
    name: str, task: IntentEpisodes, plan: StreamPlan, weights: WeightsPlan, strength: float, seed: int
) -> Iterator[tuple[str, Callable[[nn.Module], Matrix]]]:
    """Ways in which a contestant learns a stream: what each is called, and how it goes."""
    stages = task.stream(seed, plan)
    yield "in memory", lambda model: in_memory(model, stages)
    if name == "hope":
        yield "in memory, levels", lambda model: in_memory(model, stages, _level_rates(model, task, plan, seed))
    if name in LEARNS_BY_WEIGHTS:
        yield "fine-tuned", lambda model: in_weights(model, stages, weights, seed)
        yield "elastic", lambda model: in_weights(model, stages, replace(weights, strength=strength), seed)
        yield "joint", lambda model: in_weights(model, stages, replace(weights, rehearse=True), seed)


def _level_rates(
    model: nn.Module,
    task: IntentEpisodes,
    plan: StreamPlan,
    seed: int,
    factors: Sequence[float] = (0.03, 0.3, 3.0),
) -> dict[str, float]:
    """The factor on the levels' learning rates that does best on a stream of training's classes."""
    assert isinstance(model, Hope)
    num_tasks = min(plan.num_tasks, len(task.trained) // plan.classes_per_task)
    stages = task.stream(seed, replace(plan, num_tasks=num_tasks), tested=False)

    def accuracy(factor: float) -> float:
        matrix = in_memory(model, stages, dict.fromkeys(LEVELS, factor))
        return sum(matrix[-1]) / len(matrix[-1])

    return dict.fromkeys(LEVELS, max(factors, key=accuracy))


def _notes(fitted: Fitted, task: IntentEpisodes, seed: int) -> dict[str, float]:
    unseen = next(task.tests(seed))[1]
    return {
        "parameters": float(num_parameters(fitted.model)),
        "seconds": round(fitted.seconds, 1),
        "tokens": float(fitted.num_tokens),
        "validation_loss": fitted.validation.loss,
        "validation_accuracy": fitted.validation.accuracy,
        "unseen_classes_accuracy": mark(fitted.model, unseen).accuracy,  # type: ignore[arg-type]
    }

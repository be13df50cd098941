"""Table: Kalamang to English and back, from what was read alone, and with weights fine-tuned; chrF.

Every contestant learns on invented languages how a page is used, then reads the same pages of real word-list entries
and sentences. Knows how runs are made and kept; the language is in `tasks/translation.py`.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.evaluation.chrf import chrf
from engine.evaluation.contestants import Shape, build, num_parameters
from engine.evaluation.fitting import FitPlan, Fitted, best_rate, fit
from engine.evaluation.study import Results, Run, beginning
from engine.evaluation.tasks.translation import (
    DIRECTIONS,
    Book,
    InventedLanguages,
    PagePlan,
    Sentences,
    question,
    read_kalamang,
    word_for_word,
)
from engine.model.weights import TOKENIZER_FILE, bundled_checkpoint
from engine.tokenizer import END, PAD, Tokenizer

NAME = "translation"
TITLE = "Kalamang to English and back, chrF"
PERCENT = False
TEXT = """Translation of a language that hardly anybody writes, in the manner of MTOB. "Read": a page of word-list
entries and one translated sentence is read before each question and no weight changes; how to use a page was learned
on languages invented for one row, Kalamang was in none of them. "Fine-tuned": the same weights trained on the parallel
sentences, reading nothing but the question. chrF2, 0 to 100. These models have two layers and learn English from some
thousand sentences: they score low, and copying the source or looking up each word is shown beside them."""

STEPS, TUNING_STEPS, RATES = 250, 250, (4e-3,)


def arguments(parser: argparse.ArgumentParser) -> None:
    """This table's own flags."""
    parser.add_argument("--sentences", type=int, default=48, metavar="N", help="test sentences (default 48)")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="of the contestants (default 64)")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="of the contestants (default 2)")
    parser.add_argument(
        "--tuning-steps", type=int, default=TUNING_STEPS, metavar="N", help=f"of fine-tuning (default {TUNING_STEPS})"
    )


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count: two references, and every contestant at its best rate.

    Raises:
        InvalidRequest: the data is missing, or a contestant is unknown.
    """
    book, plan = read_kalamang(given.data), PagePlan()
    tokenizer = Tokenizer.load(bundled_checkpoint() / TOKENIZER_FILE)
    task = InventedLanguages([english for _, english in book.sentences], plan, tokenizer)
    book = Book(book.words, book.sentences, book.tests[: given.sentences])
    steps, rates = given.steps or STEPS, given.rates or RATES
    counted = list(_references(book, results))
    for name in given.models:
        shape = Shape(task.vocab_size, given.width, given.layers)

        def run(rate: float, seed: int, name: str = name, shape: Shape = shape) -> Run:
            make = partial(build, name, shape)
            settings: dict[str, float | int | str] = {
                "begins": beginning(make, seed),
                **{"task": task.name, "steps": steps, "rate": rate, "tuning": given.tuning_steps},
                **{"width": given.width, "layers": given.layers, "sentences": len(book.tests)},
            }
            found = results.find(name, seed, settings)
            if found is not None:
                return found
            fitted = fit(make, task, FitPlan(steps), rate, seed)
            tuned = _tuned(fitted.model, book, plan, tokenizer, FitPlan(given.tuning_steps), rate, seed)
            values = dict(_scores("read", fitted.model, book, plan, tokenizer, reads=True))
            values |= _scores("fine-tuned", tuned.model, book, plan, tokenizer, reads=False)
            return results.add(Run(NAME, name, seed, settings, values, _notes(fitted, tuned)))

        tried = [run(rate, 0) for rate in rates]
        rate = best_rate([(float(one.settings["rate"]), one.notes["validation_loss"]) for one in tried])
        counted += [run(rate, seed) for seed in range(given.seeds)]
    return counted


def translate(model: Any, questions: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    """The likeliest token again and again after each question, up to `END`.

    Returns:
        Ids of every translation, without `END`.
    """
    lengths_B = torch.tensor([len(one) for one in questions])
    width = int(lengths_B.max())
    tokens_BT = torch.tensor([[*one, *[PAD] * (width - len(one))] for one in questions])
    rows = torch.arange(len(questions))
    said: list[list[int]] = [[] for _ in questions]
    with torch.no_grad():
        x_BTD, memory = model.hidden(tokens_BT, model.initial_memory(len(questions), levels=False), lengths_B)
        x_BD = x_BTD[rows, lengths_B - 1]
        speaking = set(range(len(questions)))
        for _ in range(max_tokens):
            next_B = model.logits(x_BD).argmax(-1)
            speaking = {row for row in speaking if int(next_B[row]) != END}
            if not speaking:
                break
            for row in speaking:
                said[row].append(int(next_B[row]))
            x_BTD, memory = model.hidden(next_B.unsqueeze(1), memory)
            x_BD = x_BTD[:, 0]
    return said


def _references(book: Book, results: Results) -> Iterator[Run]:
    """What is reached without a model."""
    ways: dict[str, Callable[[Book, str], str]] = {
        "(source copied)": lambda _, source: source,
        "(word for word)": word_for_word,
    }
    for name, way in ways.items():
        settings: dict[str, float | int | str] = {"sentences": len(book.tests)}
        run = results.find(name, 0, settings)
        if run is None:
            values = {}
            for direction in DIRECTIONS:
                facing = book.facing(direction)
                said = [way(facing, source) for source, _ in facing.tests]
                values[f"{direction} read"] = chrf(said, [target for _, target in facing.tests])
            run = results.add(Run(NAME, name, 0, settings, values))
        yield run


def _tuned(
    model: nn.Module, book: Book, plan: PagePlan, tokenizer: Tokenizer, fitting: FitPlan, rate: float, seed: int
) -> Fitted:
    """A copy of the model, trained on the parallel sentences."""
    task = Sentences(book.sentences, plan, tokenizer)
    return fit(lambda: copy.deepcopy(model), task, fitting, rate / 2, seed)


def _scores(
    how: str, model: nn.Module, book: Book, plan: PagePlan, tokenizer: Tokenizer, *, reads: bool, rows: int = 16
) -> Iterator[tuple[str, float]]:
    """chrF of the test sentences in both directions."""
    for direction in DIRECTIONS:
        facing = book.facing(direction)
        asked = [question(facing if reads else None, source, plan, tokenizer) for source, _ in facing.tests]
        said: list[list[int]] = []
        for start in range(0, len(asked), rows):
            said += translate(model, asked[start : start + rows], plan.answer_tokens)
        translations = [tokenizer.decode([token for token in one if token != PAD]) for one in said]
        yield f"{direction} {how}", chrf(translations, [target for _, target in facing.tests])


def _notes(fitted: Fitted, tuned: Fitted) -> dict[str, float]:
    return {
        "parameters": float(num_parameters(fitted.model)),
        "seconds": round(fitted.seconds + tuned.seconds, 1),
        "tokens": float(fitted.num_tokens + tuned.num_tokens),
        "validation_loss": fitted.validation.loss,
        "validation_accuracy": fitted.validation.accuracy,
        "tuned_validation_loss": tuned.validation.loss,
    }

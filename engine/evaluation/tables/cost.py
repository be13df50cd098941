"""What training, reading and speaking cost every contestant on this machine, and how large its state is.

Contestants take turns at each measurement, so that a busy moment falls on all of them; a figure is the median of
several. Speeds of a shared machine drift: read the ratios. Nothing is trained.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from engine.config import ModelConfig
from engine.evaluation.contestants import Shape, build, num_parameters
from engine.evaluation.study import Results, Run
from engine.model.hope import Hope, Memory

NAME = "cost"
TITLE = "Cost: tokens a second, milliseconds a decoded token, bytes of state"
TEXT = """Untrained models in float32. Training is forward and backward of a step, without the optimizer; decoding is
token by token after a context, one session; the state is one session's after so many tokens. Figures are medians of
measurements in turns, so that a busy moment falls on all, and with one thread they are of processor time; on a
shared machine only their ratios mean something."""
PERCENT = False
CONTEXTS = (1024, 4096, 16_384)
TRAIN, READ = "train tok/s", "read tok/s"
PIECE = 1024


@dataclass(frozen=True)
class CostPlan:
    """Sizes of the measurement.

    Attributes:
        contexts: tokens read before speaking.
        num_rows, num_tokens: rows of a training step and tokens of each; one row as long is read.
        decode_tokens: tokens decoded at a time.
        repeats: measurements of each figure; their median counts.
    """

    contexts: tuple[int, ...] = CONTEXTS
    num_rows: int = 4
    num_tokens: int = 512
    decode_tokens: int = 16
    repeats: int = 5


@dataclass
class Contestant:
    """A model at work: its memories after every context, and the seconds taken so far by figure."""

    name: str
    model: nn.Module
    memories: dict[int, Memory]
    seconds: dict[str, list[float]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags."""
    parser.add_argument("--width", type=int, default=128, help="of every contestant (default 128)")
    parser.add_argument("--layers", type=int, default=4, help="of every contestant (default 4)")
    parser.add_argument("--repeats", type=int, default=CostPlan.repeats, metavar="N", help="a figure's median is of N")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=CONTEXTS, metavar="TOKENS", help="contexts to decode after"
    )


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Measures what is missing, all contestants together, once for every seed; returns the runs that count."""
    plan = CostPlan(contexts=tuple(given.contexts), repeats=given.repeats)
    settings: dict[str, float | int | str] = {
        "width": given.width,
        "layers": given.layers,
        "threads": torch.get_num_threads(),
        "repeats": plan.repeats,
        "contexts": " ".join(map(str, plan.contexts)),
        # Speeds compare only where they were measured side by side.
        "beside": " ".join(given.models),
    }
    shape = Shape(
        ModelConfig().vocab_size, given.width, given.layers, max(2, given.width // 64), ModelConfig().chunk_memory
    )
    runs = [run for seed in range(given.seeds) for run in _round(given.models, shape, plan, seed, settings, results)]
    return sorted(runs, key=lambda run: given.models.index(run.model))


def compare(
    models: dict[str, nn.Module], plan: CostPlan, seed: int = 0, *, show_progress: bool = True
) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Figures and notes of every model, measured in turns.

    Returns:
        By name: ("train tok/s", "read tok/s", then "decode ms N" and "state bytes N" for every context N), and
        the notes (parameters; bytes that Hope's CMS levels add to a session's state once they have learned).
    """
    shape = plan.num_rows, plan.num_tokens + 1
    tokens_BT = torch.randint(8, ModelConfig().vocab_size, shape, generator=_generator(seed))
    contestants = [Contestant(name, model, {}, {}) for name, model in models.items()]
    work: list[tuple[str, Callable[[Contestant], object]]] = [
        (TRAIN, lambda one: _train(one.model, tokens_BT)),
        (READ, lambda one: _read(one.model, tokens_BT[:1, :-1], _fresh(one.model))),
    ]
    for context in plan.contexts:
        work.append((f"decode ms {_short(context)}", partial(_decode, context, plan.decode_tokens)))
    for one in tqdm(contestants, unit="model", desc="contexts", disable=not show_progress):
        _remember(one, plan, seed)
    # On one thread, the processor's seconds: what else the machine does takes none of them.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for name, do in tqdm(work, unit="figure", desc=NAME, disable=not show_progress):
        # The first round warms up and does not count.
        for turn in range(plan.repeats + 1):
            for one in contestants:
                begun = clock()
                do(one)
                if turn:
                    one.seconds.setdefault(name, []).append(clock() - begun)
    return {one.name: (_figures(one, plan), _notes(one.model)) for one in contestants}


def state_bytes(memory: Memory) -> int:
    """Bytes of a memory."""
    return sum(value.numel() * value.element_size() for value in memory.values())


def remarks(runs: list[Run]) -> str:
    """What CMS levels would add to the states."""
    added = {run.model: run.notes["level_bytes"] for run in runs if run.notes.get("level_bytes")}
    if not added:
        return ""
    sizes = ", ".join(f"{size:,.0f} to {name}'s" for name, size in added.items())
    return f"States hold no CMS levels; once learned, they add a fixed number of bytes: {sizes}."


def _round(
    names: list[str],
    shape: Shape,
    plan: CostPlan,
    seed: int,
    settings: dict[str, float | int | str],
    results: Results,
) -> list[Run]:
    """One run of every contestant, measured together; one that was cut short is measured again whole."""
    found = [run for run in (results.find(name, seed, settings) for name in names) if run is not None]
    if len(found) == len(names):
        return found
    results.runs = [run for run in results.runs if run not in found]
    measured = compare({name: build(name, shape) for name in names}, plan, seed)
    return [results.add(Run(NAME, name, seed, settings, *figures)) for name, figures in measured.items()]


def _train(model: nn.Module, tokens_BT: Tensor) -> None:
    x_BTD, _ = model.hidden(tokens_BT[:, :-1], _fresh(model, tokens_BT.shape[0]))  # type: ignore[operator]
    logits = model.logits(x_BTD).flatten(0, 1)  # type: ignore[operator]
    functional.cross_entropy(logits, tokens_BT[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _read(model: nn.Module, tokens_BT: Tensor, memory: Memory) -> Memory:
    """The memory after a text, read in pieces; logits are taken of the last token only, as before speaking."""
    for start in range(0, tokens_BT.shape[1], PIECE):
        x_BTD, memory = model.hidden(tokens_BT[:, start : start + PIECE], memory)  # type: ignore[operator]
    model.logits(x_BTD[:, -1:])  # type: ignore[operator]
    return memory


@torch.no_grad()
def _decode(context: int, num_tokens: int, one: Contestant) -> None:
    """Speaks after a context, always the likeliest token; the memory of the context stays as it is."""
    memory, token_BT = one.memories[context], torch.full((1, 1), 8)
    for _ in range(num_tokens):
        x_BTD, memory = one.model.hidden(token_BT, memory)  # type: ignore[operator]
        token_BT = one.model.logits(x_BTD).argmax(-1)  # type: ignore[operator]


@torch.no_grad()
def _remember(one: Contestant, plan: CostPlan, seed: int) -> None:
    """Reads one long text and keeps the memory at every context."""
    tokens_BT = torch.randint(8, ModelConfig().vocab_size, (1, max(plan.contexts)), generator=_generator(seed + 1))
    memory, done = _fresh(one.model), 0
    for context in sorted(plan.contexts):
        memory = _read(one.model, tokens_BT[:, done:context], memory)
        one.memories[context], done = memory, context


def _fresh(model: nn.Module, num_rows: int = 1) -> Memory:
    memory: Memory = model.initial_memory(num_rows, levels=False)  # type: ignore[operator]
    return memory


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _figures(one: Contestant, plan: CostPlan) -> dict[str, float]:
    medians = {name: statistics.median(seconds) for name, seconds in one.seconds.items()}
    values = {TRAIN: plan.num_rows * plan.num_tokens / medians[TRAIN], READ: plan.num_tokens / medians[READ]}
    for context in plan.contexts:
        name = f"decode ms {_short(context)}"
        values[name] = 1000 * medians[name] / plan.decode_tokens
    for context in plan.contexts:
        values[f"state bytes {_short(context)}"] = float(state_bytes(one.memories[context]))
    return values


def _notes(model: nn.Module) -> dict[str, float]:
    notes = {"parameters": float(num_parameters(model))}
    if isinstance(model, Hope):
        notes["level_bytes"] = float(state_bytes(model.initial_memory(1)) - state_bytes(_fresh(model)))
    return notes


def _short(num_tokens: int) -> str:
    return f"{num_tokens // 1024}K" if num_tokens % 1024 == 0 else str(num_tokens)

"""`python -m engine.training.optimizer_study`: every optimizer on one small real task, next-character prediction.

Each gets the same model, steps, batches, seeds and learning rates; the row of an optimizer is its best rate.
A finished run is a line of the .jsonl file next to the result, and is not made again. Knows nothing of Hope: what
holds for a small MLP need not hold for it.

Shapes: B rows, K characters of context, V characters of the alphabet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from engine.errors import InvalidRequest
from engine.training.optimizers import make_optimizer

Row = dict[str, Any]
HEAD = "layers.4"


@dataclass(frozen=True)
class Case:
    """One row of the table: an optimizer of `make_optimizer` and its options."""

    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "adamw": Case("adamw"),
    "sgd": Case("sgd", {"momentum": 0.9}),
    "delta_momentum": Case("delta_momentum"),
    "deep_momentum": Case("deep_momentum"),
    "deep_momentum (regression)": Case("deep_momentum", {"objective": "regression"}),
    "muon": Case("muon"),
    "m3": Case("m3"),
    "m3 (slow weight 0)": Case("m3", {"slow_weight": 0.0}),
    "m3 (as printed)": Case("m3", {"accumulate": True}),
    "dgd": Case("dgd", {"skip": (HEAD,)}),
    "dgd (pull 0.1)": Case("dgd", {"skip": (HEAD,), "pull": 0.1}),
}


@dataclass(frozen=True)
class StudyPlan:
    """What every optimizer gets.

    Attributes:
        learning_rates: each is run with every seed; the best mean counts.
        num_steps: steps of `num_rows` characters; over the last third the rate falls to 0.
        num_validation_rows: positions of the last tenth of the text at which the loss is taken.
    """

    learning_rates: tuple[float, ...] = (0.003, 0.03, 0.3)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_steps: int = 300
    num_rows: int = 256
    num_validation_rows: int = 16_384
    context: int = 16

    def rate(self, step: int, peak: float) -> float:
        """Learning rate at `step`."""
        return peak * min(1.0, 3 * (self.num_steps - step) / self.num_steps)


class CharacterModel(nn.Module):
    """The next character from the last K: an embedding and three linear layers, about 108,000 parameters."""

    def __init__(self, num_characters: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, 24)
        sizes = ((24 * context, 192), (192, 128), (128, num_characters))
        first, second, head = (nn.Linear(*size) for size in sizes)
        self.layers = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), head)

    def forward(self, characters_BK: Tensor) -> Tensor:
        """Logits [B,V]."""
        logits: Tensor = self.layers(self.embedding(characters_BK).flatten(1))
        return logits


def run_study(
    text: Path,
    out: Path,
    progress: Callable[[str], None] = lambda line: None,
    plan: StudyPlan | None = None,
    cases: Mapping[str, Case] = CASES,
) -> list[Row]:
    """Runs what is missing of the study and writes the table.

    Args:
        text: file to learn from; the last tenth is held out.
        out: the result, JSON; finished runs lie beside it as .jsonl.
        progress: told of every run as it ends.
        plan: None is the default `StudyPlan`.
        cases: rows by name.

    Returns:
        One row per case: {"optimizer", "learning_rate", "loss", "spread", "seconds", "runs"}: the rate whose mean
        validation loss (nats per character) is least, that mean, its standard deviation over seeds, mean processor
        seconds of a run and their number. Where some seed diverged at every rate, all but name and `runs` are None.

    Raises:
        InvalidRequest: the text is too short for the plan.
    """
    plan = plan or StudyPlan()
    content = text.read_text("utf-8")
    alphabet = {character: index for index, character in enumerate(sorted(set(content)))}
    tokens = torch.tensor([alphabet[character] for character in content])
    if len(tokens) < 20 * (plan.context + 1):
        raise InvalidRequest(f"a text of {len(tokens)} characters is too short to study", param="text")
    done = _finished(out.with_suffix(".jsonl"))
    for name, case in cases.items():
        for rate in plan.learning_rates:
            for seed in plan.seeds:
                key = _key(content, plan, case, rate, seed)
                if key in done:
                    continue
                loss, seconds = _run(tokens, len(alphabet), plan, case, rate, seed)
                cell = {"key": key, "optimizer": name, "learning_rate": rate, "seed": seed}
                done[key] = cell | {"loss": loss, "seconds": seconds}
                with out.with_suffix(".jsonl").open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
                progress(f"{name} at {rate}, seed {seed}: {'diverged' if loss is None else f'{loss:.4f}'}")
    rows = [_row(name, case, content, plan, done) for name, case in cases.items()]
    out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """From the command line to `run_study` and a table."""
    parser = argparse.ArgumentParser("optimizer_study", description=__doc__)
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="text to learn from")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the result")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    plan = StudyPlan()
    with tqdm(total=len(CASES) * len(plan.learning_rates) * len(plan.seeds), unit="run") as bar:

        def advance(line: str) -> None:
            bar.update()
            bar.set_postfix_str(line)

        rows = run_study(given.text, given.out, advance, plan)
    for row in sorted(rows, key=lambda row: math.inf if row["loss"] is None else row["loss"]):
        if row["loss"] is None:
            print(f"{row['optimizer']:26} diverged")
        else:
            rate, loss, spread = row["learning_rate"], row["loss"], row["spread"]
            print(f"{row['optimizer']:26} {rate:<8} {loss:.4f} +- {spread:.4f}  {row['seconds']:.2f} s")
    return 0


def _run(
    tokens: Tensor, num_characters: int, plan: StudyPlan, case: Case, peak: float, seed: int
) -> tuple[float | None, float]:
    """Validation loss after training, None where it diverged, and the processor seconds training took."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CharacterModel(num_characters, plan.context)
    optimizer = make_optimizer(case.optimizer, model, peak, **case.options)
    windows = tokens.unfold(0, plan.context + 1, 1)
    num_training = int(len(windows) * 0.9) - plan.context
    started = time.process_time()
    for step in range(plan.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step, peak)
        batch = windows[torch.randint(num_training, (plan.num_rows,), generator=generator)]
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])
        if not bool(torch.isfinite(loss)):
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = time.process_time() - started
    held_out = windows[int(len(windows) * 0.9) :]
    chosen = held_out[torch.linspace(0, len(held_out) - 1, min(plan.num_validation_rows, len(held_out))).long()]
    with torch.no_grad():
        validation = float(functional.cross_entropy(model(chosen[:, :-1]), chosen[:, -1]))
    # Worse than to guess all characters alike, or no number at all: the run diverged.
    return (validation if validation < math.log(num_characters) else None), seconds


def _row(name: str, case: Case, content: str, plan: StudyPlan, done: Mapping[str, Row]) -> Row:
    best: Row = {"optimizer": name, "learning_rate": None, "loss": None, "spread": None, "seconds": None}
    best["runs"] = len(plan.seeds)
    for rate in plan.learning_rates:
        cells = [done[_key(content, plan, case, rate, seed)] for seed in plan.seeds]
        losses = [cell["loss"] for cell in cells if cell["loss"] is not None]
        if len(losses) < len(cells) or (best["loss"] is not None and statistics.fmean(losses) >= best["loss"]):
            continue
        best |= {"learning_rate": rate, "loss": statistics.fmean(losses)}
        best["spread"] = statistics.stdev(losses) if len(losses) > 1 else 0.0
        best["seconds"] = statistics.fmean(cell["seconds"] for cell in cells)
    return best


def _key(content: str, plan: StudyPlan, case: Case, rate: float, seed: int) -> str:
    """What a run depends on, short: a plan or an option changed makes it another run."""
    shared = {name: value for name, value in asdict(plan).items() if name not in ("learning_rates", "seeds")}
    everything = [hashlib.sha256(content.encode()).hexdigest(), shared, case.optimizer, dict(case.options), rate, seed]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def _finished(path: Path) -> dict[str, Row]:
    """Runs made before, by key; a line that has no end was being written when the study was killed."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(lines))
    return {row["key"]: row for row in map(json.loads, lines)}


if __name__ == "__main__":
    raise SystemExit(main())

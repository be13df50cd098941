"""`hope train`: AdamW over memory dialogues, from short to long; resumable, on CPU or CUDA.

Everything a run needs to go on lies in its folder: weights, optimizer moments, step and log. Knows no server.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from engine.errors import InvalidRequest
from engine.model.hope import Hope, HopeBlock, Memory
from engine.model.weights import checkpoint_notes, load_checkpoint, save_checkpoint
from engine.tokenizer import Tokenizer
from engine.training.data import Batch, DialogueData
from engine.training.dialogue import Stage

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"
PROBE_SEED = 999_983


@dataclass(frozen=True)
class TrainingPlan:
    """What to train on and how fast.

    Attributes:
        stages: (first step, stage), in order: the curriculum.
        steps: optimizer steps in all.
        learning_rate: peak rate; linear warm-up, constant, linear decay over the last `cooldown` steps.
        command: how the run was started, for the model card.
        earlier: the same of the runs whose weights this one began with: command, steps, tokens seen.
        message_share: share of message tokens that carry loss; replies always do.
    """

    stages: tuple[tuple[int, Stage], ...]
    steps: int
    learning_rate: float = 2e-3
    warmup: int = 100
    cooldown: int = 1000
    weight_decay: float = 0.05
    message_share: float = 0.3
    clip: float = 1.0
    command: str = "hope train"
    earlier: tuple[dict[str, str], ...] = ()

    def stage(self, step: int) -> Stage:
        """The curriculum's stage at `step`."""
        return [stage for first, stage in self.stages if first <= step][-1]

    def rate(self, step: int) -> float:
        """Learning rate at `step`."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.learning_rate * min(rise, fall)


@dataclass(frozen=True)
class Recall:
    """Teacher-forced recall on held-out values: `exact` values whose every token is right, and right `tokens`."""

    exact: float
    tokens: float


class Trainer:
    """One run: a model, its optimizer, its folder."""

    def __init__(self, model: Hope, tokenizer: Tokenizer, data: DialogueData, plan: TrainingPlan, folder: Path) -> None:
        self.model, self.tokenizer, self.data, self.plan, self.folder = model, tokenizer, data, plan, folder
        self.device = model.embedding.weight.device
        self.optimizer = torch.optim.AdamW(_groups(model, plan.weight_decay), lr=0.0, betas=(0.9, 0.98), eps=1e-9)
        self.step = 0
        self.tokens_seen = 0
        # What the rows of the step before remember: dialogues that go on begin with it.
        self.carried: Memory = {}
        folder.mkdir(parents=True, exist_ok=True)
        if has_run(folder):
            self._resume()

    def run(self, *, save_every: int, probe_every: int, show_progress: bool = True) -> None:
        """Trains up to the plan's last step, saving and probing on the way."""
        bar = tqdm(total=self.plan.steps, initial=self.step, disable=not show_progress, unit="step")
        self.model.train()
        while self.step < self.plan.steps:
            started = time.monotonic()
            loss = self.train_step()
            row: dict[str, float] = {"step": self.step, "loss": loss, "seconds": time.monotonic() - started}
            if self.step % probe_every == 0 or self.step == self.plan.steps:
                recall = self.probe()
                row |= {"recall": recall.exact, "recall_tokens": recall.tokens}
                bar.set_postfix(loss=f"{loss:.3f}", recall=f"{recall.exact:.1%}")
            row["tokens"] = self.tokens_seen
            with (self.folder / LOG_FILE).open("a") as log:
                log.write(json.dumps(row) + "\n")
            if self.step % save_every == 0 or self.step == self.plan.steps:
                self.save()
            bar.update()
        bar.close()

    def train_step(self) -> float:
        """One optimizer step; returns the mean loss over replies and sampled message tokens."""
        stage = self.plan.stage(self.step)
        batch = self.data.batch(self.step, stage)
        rate = self.plan.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        if math.isfinite(float(norm)):
            self.optimizer.step()
        self.step += 1
        self.tokens_seen += batch.tokens_BT.numel()
        return float(loss.detach())

    def loss(self, batch: Batch) -> Tensor:
        """Weighted next-token loss. Gradients run through every memory write of the row (HOPE.md §3, 5)."""
        weight = batch.weight_BT
        generator = torch.Generator().manual_seed(self.data.seed * 1_000_003 + self.step)
        sampled = torch.rand(weight.shape, generator=generator) < self.plan.message_share
        chosen = ((weight > 0) & (sampled | (weight > 0.3))).flatten().nonzero().squeeze(1).to(self.device)
        memory = self.carried if batch.goes_on else self.model.initial_memory(weight.shape[0], levels=False)
        hidden, after = self.model.hidden(batch.tokens_BT.to(self.device), memory)
        # Gradients end at the row's begin; what was told before it is read, and kept or lost, all the same.
        self.carried = {name: value.detach() for name, value in after.items()}
        logits = self.model.logits(hidden.flatten(0, 1).index_select(0, chosen))
        target = batch.target_BT.to(self.device).flatten().index_select(0, chosen)
        weight = weight.to(self.device).flatten().index_select(0, chosen)
        losses = functional.cross_entropy(logits, target, reduction="none")
        return (losses * weight).sum() / weight.sum()

    @torch.no_grad()
    def probe(self, num_rows: int = 16) -> Recall:
        """Recall on held-out values, phrases as in training, at the end of dialogues of the current stage's length."""
        stage = self.plan.stage(min(self.step, self.plan.steps - 1))
        stage = replace(stage, num_rows=num_rows)
        data, first = DialogueData(self.tokenizer, self.data.talk, PROBE_SEED), self.step * stage.segments
        memory = self.model.initial_memory(num_rows, levels=False)
        for segment in range(stage.segments):
            batch = data.batch(first + segment, stage, held_out=True)
            hidden, memory = self.model.hidden(batch.tokens_BT.to(self.device), memory)
        right = torch.zeros_like(batch.value_BT)
        for row in range(num_rows):
            guess = self.model.logits(hidden[row]).argmax(-1).cpu()
            right[row] = guess == batch.target_BT[row]
        spans = [
            bool(right[row, begin:end].all())
            for row in range(num_rows)
            for begin, end in _spans(batch.value_BT[row].tolist())
        ]
        tokens = right[batch.value_BT].float().mean()
        return Recall(sum(spans) / max(1, len(spans)), float(tokens))

    def save(self) -> None:
        """Writes what a later `Trainer` on the same folder resumes from."""
        notes = {
            "tokens_seen": str(self.tokens_seen),
            "steps": str(self.step),
            "command": self.plan.command,
            "plan": json.dumps(asdict(self.plan)),
            "earlier": json.dumps(self.plan.earlier),
        }
        save_checkpoint(self.folder, self.model, self.tokenizer, notes)
        state = {f"weight|{name}": value.detach().cpu() for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{key}|{name}"] = torch.as_tensor(value).detach().cpu()
        state |= {f"memory|{name}": value.cpu() for name, value in self.carried.items()}
        # One file, put in place at once: a run killed while it saves goes on from the save before.
        partial = self.folder / (STATE_FILE + ".partial")
        progress = {"step": str(self.step), "tokens_seen": str(self.tokens_seen)}
        save_file({name: value.contiguous() for name, value in state.items()}, partial, metadata=progress)
        partial.replace(self.folder / STATE_FILE)

    def _resume(self) -> None:
        with safe_open(self.folder / STATE_FILE, framework="pt") as file:
            progress = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.step, self.tokens_seen = int(progress["step"]), int(progress["tokens_seen"])
        self._cut_log()
        weights, parameters = {}, dict(self.model.named_parameters())
        for key, value in state.items():
            field, _, name = key.partition("|")
            if field == "weight":
                weights[name] = value
            elif field == "memory":
                self.carried[name] = value.to(self.device)
            else:
                self.optimizer.state[parameters[name]][field] = value if field == "step" else value.to(self.device)
        self.model.load_state_dict(weights)

    def _cut_log(self) -> None:
        """Takes back what was logged after the last save: those steps are made again."""
        log = self.folder / LOG_FILE
        # A line that has no end was being written when the run was killed.
        lines = (
            [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.exists() else []
        )
        log.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))


def history(folder: Path) -> tuple[dict[str, str], ...]:
    """Every run behind a checkpoint, its own last: command, steps and tokens seen."""
    notes = checkpoint_notes(folder)
    own = {name: notes[name] for name in ("command", "steps", "tokens_seen") if name in notes}
    return (*json.loads(notes.get("earlier", "[]")), own)


def start_from(model: Hope, folder: Path) -> None:
    """Gives the model another checkpoint's weights to begin with; InvalidRequest where its shape is another."""
    other, _ = load_checkpoint(folder)
    if {name: w.shape for name, w in other.state_dict().items()} != {n: w.shape for n, w in model.state_dict().items()}:
        raise InvalidRequest(f"the checkpoint in '{folder}' has another shape than the model to train", param="start")
    model.load_state_dict(other.state_dict())


def compile_segments(model: Hope) -> None:
    """Compiles the one hot function, a full chunk of a layer; worth its minute of start-up on long runs."""
    for block in model.blocks:
        assert isinstance(block, HopeBlock)
        block.titans.segment = torch.compile(block.titans.segment, dynamic=False)  # type: ignore[method-assign]


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return (folder / STATE_FILE).exists()


def _groups(model: Hope, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; gains, biases and filters do not."""
    decays = [p for n, p in model.named_parameters() if p.dim() >= 2 and "weight_WF11D" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() < 2 or "weight_WF11D" in n]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _spans(marks: list[bool]) -> Iterator[tuple[int, int]]:
    """Runs of true marks that end within the row."""
    begin: int | None = None
    for index, mark in enumerate(marks):
        if mark and begin is None:
            begin = index
        elif not mark and begin is not None:
            yield begin, index
            begin = None

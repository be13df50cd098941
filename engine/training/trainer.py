"""`hope train`: one optimizer step after another over memory dialogues, from short to long; resumable.

Everything a run needs to go on lies in its folder: weights, optimizer moments, step and log. Knows no server, and of
other processes only that it may be one of a team.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.errors import InvalidRequest
from engine.model.baselines.common import Baseline
from engine.model.hope import POSITION, Hope, Memory
from engine.model.weights import save_checkpoint
from engine.tokenizer import Tokenizer
from engine.training.ahead import Ahead
from engine.training.captured import CapturedStep
from engine.training.data import Batch, DialogueData, count_recalled
from engine.training.objective import Objective
from engine.training.optimizers import NAMES, make_optimizer
from engine.training.plan import TrainingPlan
from engine.training.run_state import RunState, cut_log, has_run, read_state, write_state
from engine.training.segments import checkpoint_segments, keep_segments_in_float32
from engine.training.team import ALONE, FSDP, NONE, Team, cut_like, whole

LOG_FILE = "log.jsonl"
PROBE_SEED = 999_983


@dataclass(frozen=True)
class Recall:
    """Teacher-forced recall on held-out values: `exact` values whose every token is right, and right `tokens`."""

    exact: float
    tokens: float


class Trainer:
    """One run: a model, its optimizer, its folder; InvalidRequest where the plan and the folder or team disagree."""

    def __init__(
        self,
        model: Hope | Baseline,
        tokenizer: Tokenizer,
        data: DialogueData,
        plan: TrainingPlan,
        folder: Path,
        team: Team = ALONE,
    ) -> None:
        self.model, self.tokenizer, self.data, self.plan, self.folder = model, tokenizer, data, plan, folder
        self.team, self.device = team, model.embedding.weight.device
        fewest = min(stage.num_rows for _, stage in plan.stages)
        if fewest < team.size:
            raise InvalidRequest(f"{team.size} processes cannot share a batch of {fewest} rows", param="stage")
        self.step = 0
        self.tokens_seen = 0
        # What this process's rows of the step before remember: dialogues that go on begin with it.
        self.carried: Memory = {}
        state = read_state(folder) if has_run(folder) else None
        if state is not None:
            model.load_state_dict(state.weights)
        if plan.precision != "float32":
            keep_segments_in_float32(model)
        if plan.checkpointing:
            checkpoint_segments(model)
        self.objective = Objective(model, plan.precision)
        if plan.capture and team.size > 1:
            raise InvalidRequest("a captured step is for one process: --parallel none", param="capture")
        self._captured = CapturedStep(self.objective) if plan.capture else None
        self._wrapped = team.wrap(self.objective)
        # Of cut weights, these are the pieces: asked for later, the model may hold whole ones for a while.
        self._parameters = dict(model.named_parameters())
        self.optimizer = _optimizer(model, plan, team)
        if team.leads:
            folder.mkdir(parents=True, exist_ok=True)
        if state is not None:
            self._resume(state)

    def run(self, *, save_every: int, probe_every: int, makers: int = 0, show_progress: bool = True) -> None:
        """Trains up to the plan's last step, saving and probing on the way; `makers` processes make the dialogues."""
        if not makers:
            self._run(save_every, probe_every, show_progress)
            return
        with Ahead(self.data, self.plan.stage, self.step, self.plan.steps, makers) as ahead:
            self.data.source = ahead.rows
            self._run(save_every, probe_every, show_progress)
        self.data.source = None

    def _run(self, save_every: int, probe_every: int, show_progress: bool) -> None:
        bar = tqdm(
            total=self.plan.steps, initial=self.step, disable=not (show_progress and self.team.leads), unit="step"
        )
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
            if self.team.leads:
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
        if self._captured is not None:
            loss = self._captured_loss(batch, self._captured)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self.plan.clip)
        if math.isfinite(float(whole(norm))):
            self.optimizer.step()
        self.step += 1
        self.tokens_seen += batch.tokens_BT.numel()
        return float(self.team.total(loss.detach()) / self.team.size)

    def loss(self, batch: Batch) -> Tensor:
        """Weighted next-token loss. Gradients run through every memory write of the row (HOPE.md §3, 5).

        In a team it is that of this process's rows, so scaled that the mean over the processes is the batch's.
        """
        tokens_BT, target_BT, weight_BT, total = self._own_rows(batch)
        chosen = weight_BT.flatten().nonzero().squeeze(1)
        summed, after = self._wrapped(tokens_BT, target_BT, weight_BT, chosen, self._begin(batch, tokens_BT.shape[0]))
        # Gradients end at the row's begin; what was told before it is read, and kept or lost, all the same.
        self.carried = {name: value.detach() for name, value in after.items()}
        loss: Tensor = summed * self.team.size / total
        return loss

    def _captured_loss(self, batch: Batch, captured: CapturedStep) -> Tensor:
        """As `loss`, with the gradients of it in the parameters."""
        tokens_BT, target_BT, weight_BT, total = self._own_rows(batch)
        loss = captured(tokens_BT, target_BT, weight_BT / total, self._begin(batch, tokens_BT.shape[0]))
        self.carried = captured.after
        return loss

    def _own_rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, targets and weights of this process's rows, 0 where a target carries no loss; the batch's weight."""
        # Chosen for the whole batch, whoever computes it.
        generator = torch.Generator().manual_seed(self.data.seed * 1_000_003 + self.step)
        sampled = torch.rand(batch.weight_BT.shape, generator=generator) < self.plan.message_share
        carries_loss = (batch.weight_BT > 0) & (sampled | (batch.weight_BT > 0.3))
        weight_BT = batch.weight_BT * carries_loss
        rows = self.team.rows(batch.weight_BT.shape[0])
        own = (part[rows].to(self.device) for part in (batch.tokens_BT, batch.target_BT, weight_BT))
        return *own, batch.weight_BT[carries_loss].sum().to(self.device)  # type: ignore[return-value]

    def _begin(self, batch: Batch, num_rows: int) -> Memory | None:
        """What rows that go on remember; nothing where a resumed run has got another curriculum in their middle."""
        fits = bool(self.carried) and len(self.carried[POSITION]) == num_rows
        return self.carried if batch.goes_on and fits else None

    @torch.no_grad()
    def probe(self, num_rows: int = 16) -> Recall:
        """Recall on held-out values, phrases as in training, at the end of dialogues of the current stage's length."""
        stage = self.plan.stage(min(self.step, self.plan.steps - 1))
        stage = replace(stage, num_rows=max(num_rows, self.team.size))
        rows = self.team.rows(stage.num_rows)
        data, first = DialogueData(self.tokenizer, self.data.talk, PROBE_SEED), self.step * stage.segments
        memory: Memory | None = None
        for segment in range(stage.segments):
            batch = data.batch(first + segment, stage, held_out=True)
            guess_BT, memory = self.objective.guess(batch.tokens_BT[rows].to(self.device), memory)
        counts = count_recalled(guess_BT.cpu() == batch.target_BT[rows], batch.value_BT[rows])
        exact, num_spans, tokens, num_tokens = self.team.total(torch.tensor(counts, device=self.device)).tolist()
        return Recall(exact / max(1, num_spans), tokens / max(1, num_tokens))

    def save(self) -> None:
        """Writes what a later `Trainer` on the same folder resumes from; every process of a team must come here."""
        optimizer = {
            name: {
                entry: whole(torch.as_tensor(value)).detach().cpu()
                for entry, value in self.optimizer.state.get(parameter, {}).items()
                if value is not None
            }
            for name, parameter in self._parameters.items()
        }
        weights = {name: whole(parameter).detach().cpu() for name, parameter in self._parameters.items()}
        stage = self.plan.stage(self.step)
        carried = self.carried if self.step % stage.segments else {}
        memory = self.team.gathered({name: value.cpu() for name, value in carried.items()})
        if not self.team.leads:
            return
        notes = {
            "tokens_seen": str(self.tokens_seen),
            "steps": str(self.step),
            "command": self.plan.command,
            "plan": json.dumps(asdict(self.plan)),
            "earlier": json.dumps(self.plan.earlier),
        }
        save_checkpoint(self.folder, self.model, self.tokenizer, notes, weights)
        progress = {"step": str(self.step), "tokens_seen": str(self.tokens_seen), "optimizer": self.plan.optimizer}
        text_position = self.data.text_position(self.step, stage)
        progress |= {} if text_position is None else {"text": text_position}
        write_state(self.folder, RunState(weights, optimizer, memory, progress))

    def _resume(self, state: RunState) -> None:
        made_with = state.progress.get("optimizer", "adamw")
        if made_with != self.plan.optimizer:
            raise InvalidRequest(
                f"the run in '{self.folder}' goes on with the optimizer it began with: '{made_with}', "
                f"not '{self.plan.optimizer}'",
                param="optimizer",
            )
        self.step, self.tokens_seen = int(state.progress["step"]), int(state.progress["tokens_seen"])
        if self.team.leads:
            cut_log(self.folder / LOG_FILE, self.step)
        if "text" in state.progress:
            self.data.go_on(state.progress["text"])
        if state.memory:
            rows = self.team.rows(len(state.memory[POSITION]))
            self.carried = {name: value[rows].to(self.device) for name, value in state.memory.items()}
        for name, entries in state.optimizer.items():
            parameter = self._parameters[name]
            # torch's own count their steps on the CPU.
            on_cpu = {"step"} if isinstance(self.optimizer, torch.optim.AdamW) else set()
            self.optimizer.state[parameter] = {
                entry: value if entry in on_cpu else cut_like(value, parameter) for entry, value in entries.items()
            }


def _optimizer(model: Hope | Baseline, plan: TrainingPlan, team: Team) -> torch.optim.Optimizer:
    """Matrices decay; gains, biases and filters do not. `dgd` and one's own get the module, and decay nothing here."""
    if team.kind == FSDP and plan.optimizer not in ("adamw", "sgd"):
        raise InvalidRequest(f"'{plan.optimizer}' needs whole matrices: --parallel ddp, or adamw", param="optimizer")
    if plan.optimizer == "dgd" and team.kind != NONE:
        raise InvalidRequest("'dgd' needs all rows' inputs in one process: --parallel none", param="optimizer")
    if plan.optimizer == "dgd" or plan.optimizer not in NAMES:
        return make_optimizer(plan.optimizer, model, plan.learning_rate)
    named = dict(model.named_parameters())
    table = named.pop("embedding.weight")
    decays = [p for n, p in named.items() if p.dim() >= 2 and "weight_WF11D" not in n]
    others = [p for n, p in named.items() if p.dim() < 2 or "weight_WF11D" in n]
    groups: list[dict[str, object]] = [
        {"params": decays, "weight_decay": plan.weight_decay},
        {"params": [table], "weight_decay": plan.weight_decay, "matrices": False},
        {"params": others, "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-9} if plan.optimizer == "adamw" else {}
    return make_optimizer(plan.optimizer, groups, 0.0, **options)

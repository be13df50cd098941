"""`hope train`: from the command line to a `Trainer`. Knows flags; training itself is in `trainer.py`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine.config import ModelConfig
from engine.model.baselines import build_baseline
from engine.model.baselines.common import Baseline, BaselineConfig
from engine.model.hope import Hope
from engine.model.weights import TOKENIZER_FILE, baseline_config, checkpoint_config
from engine.tokenizer import Tokenizer
from engine.training.beginning import earlier_runs, retain_longer, start_from
from engine.training.blend import Blend, share_of
from engine.training.card import export
from engine.training.data import DialogueData, tokenizer_texts
from engine.training.dialogue import Stage
from engine.training.flags import DEFAULT_CURRICULUM, HOPE, make_parser, stage_of
from engine.training.plan import TrainingPlan
from engine.training.run_state import has_run
from engine.training.segments import compile_segments
from engine.training.stream import TextStream
from engine.training.talk import Talk
from engine.training.team import Team, join, leave
from engine.training.throughput import measure, settings_of, table
from engine.training.trainer import Trainer


def run_training(argv: Sequence[str]) -> int:
    """Trains or resumes a run; returns the exit status."""
    parser = make_parser()
    given = parser.parse_args(argv)
    command = shlex.join(["hope", "train", *argv])
    if given.blend and not given.export:
        parser.error("argument --blend: it changes what is exported; name a folder with --export")
    if given.export:
        between = None if given.blend is None else Blend(Path(given.blend[0]), share_of(given.blend[1]), command)
        export(given.out, given.export, given.recall, between)
        return 0
    stages = tuple(given.stage or map(stage_of, DEFAULT_CURRICULUM))
    if stages[0][0] > 0:
        parser.error(f"argument --stage: the first stage begins at step 0, not {stages[0][0]}")
    if given.retain and not given.start:
        parser.error("argument --retain: it changes a checkpoint to begin with; name that with --start")
    if given.capture and (given.device == "cpu" or not given.compile):
        parser.error("argument --capture: needs --device cuda and --compile, as plain layers ask the GPU for answers")
    torch.set_num_threads(given.threads)
    if given.device != "cpu":
        # TF32 or bfloat16 inside float32 products. CPUs that have it win a tenth, and runs differ from one to another.
        torch.set_float32_matmul_precision("medium")
    if given.throughput:
        config = _config(given, ModelConfig().vocab_size)
        settings = settings_of(given.threads)
        print("\n".join(table(measure(config, stages[0][1], settings, given.device, show_progress=True))))
        return 0
    team, given.device = join(given.parallel, given.device)
    try:
        _train(given, stages, team, command)
    finally:
        leave(team)
    return 0


def _train(given: argparse.Namespace, stages: tuple[tuple[int, Stage], ...], team: Team, command: str) -> None:
    torch.manual_seed(given.seed)
    talk = Talk(given.data)
    tokenizer = _tokenizer(given, talk, team)
    model = _model(given, tokenizer.vocab_size).to(given.device)
    if given.start and not has_run(given.out):
        start_from(model, given.start)
        if given.retain:
            retain_longer(model, given.retain)
    if given.compile:
        compile_segments(model)
    plan = TrainingPlan(
        stages,
        given.steps,
        given.learning_rate,
        cooldown=given.cooldown,
        command=command,
        earlier=earlier_runs(given.out, given.start),
        optimizer=given.optimizer,
        precision=given.precision,
        checkpointing=given.checkpointing,
        capture=given.capture,
    )
    text = TextStream(given.text, tokenizer, given.seed) if given.text else None
    data = DialogueData(tokenizer, talk, given.seed, text, given.text_share)
    trainer = Trainer(model, tokenizer, data, plan, given.out, team)
    trainer.run(save_every=given.save_every, probe_every=given.probe_every, makers=given.makers)
    if team.leads:
        print(f"done: {trainer.step} steps, {trainer.tokens_seen:,} tokens; the model lies in {given.out}")


def _model(given: argparse.Namespace, vocab_size: int) -> Hope | Baseline:
    """A Hope, or a baseline of as many parameters as the Hope would have that the other flags describe."""
    known = given.out if has_run(given.out) else given.start
    built_from = None if known is None else baseline_config(known)
    if built_from is not None:
        return build_baseline(built_from)
    config = _config(given, vocab_size)
    if given.model == HOPE:
        return Hope(config)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in Hope(config).parameters())
    shape = given.model, vocab_size, config.width, config.num_layers, config.num_heads, size
    return build_baseline(BaselineConfig(*shape))


def _config(given: argparse.Namespace, vocab_size: int) -> ModelConfig:
    """The shape of the run that goes on or of the checkpoint to start from, or a new one; and what --set changes."""
    changes = dict(given.set or ())
    known = given.out if has_run(given.out) else given.start
    if known is not None:
        return replace(checkpoint_config(known), **changes)
    sizes = {"width": given.width, "num_layers": given.layers, "num_heads": given.heads}
    return ModelConfig(vocab_size=vocab_size, **{**sizes, **changes})


def _tokenizer(given: argparse.Namespace, talk: Talk, team: Team) -> Tokenizer:
    """The run's, or another's; or a new one, made by one process for all."""
    if has_run(given.out):
        return Tokenizer.load(given.out / TOKENIZER_FILE)
    if given.start is not None:
        return Tokenizer.load(given.start / TOKENIZER_FILE)
    if given.tokenizer is not None:
        return Tokenizer.load(given.tokenizer)
    file = given.out / TOKENIZER_FILE
    if team.leads:
        given.out.mkdir(parents=True, exist_ok=True)
        Tokenizer.train(tokenizer_texts(talk, given.seed), ModelConfig().vocab_size).save(file)
    team.wait()
    return Tokenizer.load(file)


if __name__ == "__main__":
    raise SystemExit(run_training(sys.argv[1:]))

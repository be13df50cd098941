"""`hope train`: from the command line to a `Trainer`. Knows flags; training itself is in `trainer.py`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import torch

from engine.config import ModelConfig
from engine.model.baselines import BASELINES, build_baseline
from engine.model.baselines.common import Baseline, BaselineConfig
from engine.model.hope import Hope
from engine.model.weights import TOKENIZER_FILE, baseline_config, checkpoint_config
from engine.tokenizer import Tokenizer
from engine.training.beginning import earlier_runs, retain_longer, start_from
from engine.training.card import export
from engine.training.data import DialogueData, tokenizer_texts
from engine.training.dialogue import Stage
from engine.training.objective import PRECISIONS
from engine.training.optimizers import NAMES
from engine.training.run_state import has_run
from engine.training.segments import compile_segments
from engine.training.stream import TextStream
from engine.training.talk import Talk
from engine.training.team import KINDS, Team, join, leave
from engine.training.throughput import measure, settings_of, table
from engine.training.trainer import Trainer, TrainingPlan

DESCRIPTION = """Train a Hope model to remember: memory dialogues, from short to long.

The run's folder holds all there is to it: weights, optimizer, log.jsonl. Stop it and start it again with the same
--out, and it goes on where it last saved. Without --data the only other talk is the bundled small talk.

  hope train --data ../shared/data --out runs/first
  hope train --out runs/first --steps 9000          go on, further than planned
  hope train --text 'books/**/*.txt' --text-share 0.3     plain text beside the dialogues, larger than memory
  hope train --throughput                           what bfloat16, checkpointing, compiling and threads do here
  torchrun --nproc-per-node 2 --no-python hope train --parallel ddp --device cuda
  hope train --out runs/first --export engine/checkpoint   bundle it: model, card, curves (extra `plots`)"""

HOPE = "hope"
STAGE_FORM = "FIRST:TOKENS:ROWS:FACTS:TALK[:SEGMENTS]"
DEFAULT_CURRICULUM = ("0:128:32:3:0.1", "1000:256:16:5:0.3", "3000:512:8:8:0.5", "5500:1024:6:10:0.7")


def run_training(argv: Sequence[str]) -> int:
    """Trains or resumes a run; returns the exit status."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.export:
        export(given.out, given.export, given.recall)
        return 0
    stages = tuple(given.stage or map(_stage, DEFAULT_CURRICULUM))
    if stages[0][0] > 0:
        parser.error(f"argument --stage: the first stage begins at step 0, not {stages[0][0]}")
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
        _train(given, stages, team, shlex.join(["hope", "train", *argv]))
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
    )
    text = TextStream(given.text, tokenizer, given.seed) if given.text else None
    data = DialogueData(tokenizer, talk, given.seed, text, given.text_share)
    trainer = Trainer(model, tokenizer, data, plan, given.out, team)
    trainer.run(save_every=given.save_every, probe_every=given.probe_every)
    if team.leads:
        print(f"done: {trainer.step} steps, {trainer.tokens_seen:,} tokens; the model lies in {given.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hope train", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/latest"), metavar="FOLDER", help="the run's folder (default runs/latest)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of public dialogues and prose")
    parser.add_argument("--steps", type=int, default=7000, help="optimizer steps in all (default 7000)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak rate (default 0.002)")
    parser.add_argument("--cooldown", type=int, default=1500, help="last steps, in which the rate falls to 0")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads on the CPU (default 2)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler on the CPU"
    )
    parser.add_argument(
        "--model",
        choices=(HOPE, *BASELINES),
        default=HOPE,
        metavar="NAME",
        help=f"{HOPE} (default), or to measure it against, with as many parameters: {', '.join(BASELINES)}",
    )
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument(
        "--set",
        action="append",
        type=_setting,
        metavar="FIELD=VALUE",
        help="any other field of the model's shape (`ModelConfig`), repeatable, as in write_rule=gradient",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer (default: train one)")
    parser.add_argument(
        "--start", type=Path, metavar="FOLDER", help="begin with this checkpoint's weights and tokenizer"
    )
    parser.add_argument(
        "--retain",
        type=_numbers,
        metavar="NUMBERS",
        help="with --start: add to each head's retention bias first, by commas, in every layer; with 1 more it forgets "
        "after some 2.7 times as many tokens, which training, seeing few in a row, does not find by itself",
    )
    parser.add_argument(
        "--stage",
        action="append",
        type=_stage,
        metavar=STAGE_FORM,
        help=f"a stage of the curriculum, repeatable (default: {' '.join(DEFAULT_CURRICULUM)})",
    )
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--probe-every", type=int, default=100, metavar="STEPS", help="measure recall")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the run's model and card there and stop")
    parser.add_argument(
        "--recall", type=Path, action="append", default=[], metavar="FILE", help="a result of `hope eval` for the card"
    )
    _add_scale(parser.add_argument_group("more data, larger models, several machines' worth of steps"))
    return parser


def _add_scale(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--text",
        action="append",
        metavar="GLOB",
        help="plain text to learn from beside the dialogues, repeatable: .txt, or .jsonl with a `text` a line, also "
        ".gz; read piece by piece, so it may be larger than memory, and a resumed run goes on in the same place",
    )
    group.add_argument(
        "--text-share", type=_share, default=0.5, metavar="SHARE", help="of all rows, where --text is given (0.5)"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="bfloat16: dense products in it, memories and weights in float32. For GPUs; on CPUs it was measured some "
        "10%% slower (see --throughput), so float32 is the default",
    )
    group.add_argument(
        "--checkpointing",
        action="store_true",
        help="compute every chunk again on the way back instead of keeping it: the same numbers in less memory",
    )
    group.add_argument("--optimizer", default="adamw", metavar="NAME", help=f"{', '.join(NAMES)} or a FILE.py (adamw)")
    group.add_argument(
        "--parallel",
        choices=KINDS,
        help="in processes that torchrun starts, each with its share of a batch's rows. ddp (their default): all "
        "weights in each; fsdp: weights and optimizer in pieces, for models that fill a GPU. Runs are the same "
        "whatever their number, but for rounding, and each can go on with any",
    )
    group.add_argument(
        "--throughput",
        action="store_true",
        help="train nothing: print tokens/s with and without these, of the first --stage and the model's shape; with "
        "--threads 1 on a busy machine, where several are very slow",
    )


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


def _setting(text: str) -> tuple[str, Any]:
    """FIELD=VALUE of a `ModelConfig`, the value in the field's own type."""
    name, _, value = text.partition("=")
    kinds = {one.name: type(one.default) for one in fields(ModelConfig) if one.default is not MISSING}
    kind = kinds.get(name)
    if kind is None:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(sorted(kinds))}")
    if kind is tuple:
        return name, tuple(part for part in value.split(",") if part)
    if kind is bool and value not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{name} is true or false, not '{value}'")
    try:
        return name, value == "true" if kind is bool else kind(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name} is a number, not '{value}'") from None


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


def _stage(text: str) -> tuple[int, Stage]:
    try:
        first, tokens, rows, facts, talk, *segments = text.split(":")
        start, stage = int(first), Stage(int(tokens), int(rows), int(facts), float(talk), *map(int, segments))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not of the form {STAGE_FORM}, as in {DEFAULT_CURRICULUM[0]}"
        ) from None
    least = (start, stage.num_tokens - 1, stage.num_rows - 1, stage.most_facts - 2, stage.segments - 1)
    if min(least) < 0 or not 0 <= stage.talk < 1 or start % max(1, stage.segments):
        raise argparse.ArgumentTypeError(
            f"'{text}' ({STAGE_FORM}) needs at least 1 token, 1 row, 2 facts and 1 segment, a talk share "
            "from 0 to below 1, and a first step that its segments divide"
        )
    return start, stage


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share: above 0, up to 1")
    return share


if __name__ == "__main__":
    raise SystemExit(run_training(sys.argv[1:]))

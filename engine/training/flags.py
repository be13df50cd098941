"""What `hope train` can be told: its flags, and what each must look like. Knows nothing of how training goes."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from engine.config import ModelConfig
from engine.model.baselines import BASELINES
from engine.training.dialogue import Stage
from engine.training.objective import PRECISIONS
from engine.training.optimizers import NAMES
from engine.training.team import KINDS

DESCRIPTION = """Train a Hope model to remember: memory dialogues, from short to long.

The run's folder holds all there is to it: weights, optimizer, log.jsonl. Stop it and start it again with the same
--out, and it goes on where it last saved. Without --data the only other talk is the bundled small talk.

  hope train --data ../shared/data --out runs/first
  hope train --out runs/first --steps 9000          go on, further than planned
  hope train --text 'books/**/*.txt' --text-share 0.3     plain text beside the dialogues, larger than memory
  hope train --throughput                           what bfloat16, checkpointing, compiling and threads do here
  torchrun --nproc-per-node 2 --no-python -- hope train --parallel ddp --device cuda
  hope train --out runs/first --export engine/checkpoint   bundle it: model, card, curves (extra `plots`)"""

HOPE = "hope"
STAGE_FORM = "FIRST:TOKENS:ROWS:FACTS:TALK[:SEGMENTS]"
DEFAULT_CURRICULUM = ("0:128:32:3:0.1", "1000:256:16:5:0.3", "3000:512:8:8:0.5", "5500:1024:6:10:0.7")


def make_parser() -> argparse.ArgumentParser:
    """The parser of `hope train`."""
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
    _add_model(parser.add_argument_group("the model"))
    parser.add_argument(
        "--stage",
        action="append",
        type=stage_of,
        metavar=STAGE_FORM,
        help=f"a stage of the curriculum, repeatable (default: {' '.join(DEFAULT_CURRICULUM)})",
    )
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--probe-every", type=int, default=100, metavar="STEPS", help="measure recall")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the run's model and card there and stop")
    parser.add_argument(
        "--blend",
        nargs=2,
        metavar=("FOLDER", "SHARE"),
        help="with --export: weights between the checkpoint that the run began with, in FOLDER, and the run's, of "
        "which SHARE (0 to 1) stays; for what a short run on new material would forget",
    )
    parser.add_argument(
        "--recall", type=Path, action="append", default=[], metavar="FILE", help="a result of `hope eval` for the card"
    )
    _add_scale(parser.add_argument_group("more data, larger models, several machines' worth of steps"))
    return parser


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        choices=(HOPE, *BASELINES),
        default=HOPE,
        metavar="NAME",
        help=f"{HOPE} (default), or to measure it against, with as many parameters: {', '.join(BASELINES)}",
    )
    group.add_argument("--width", type=int, default=192)
    group.add_argument("--layers", type=int, default=4)
    group.add_argument("--heads", type=int, default=3)
    group.add_argument(
        "--set",
        action="append",
        type=_setting,
        metavar="FIELD=VALUE",
        help="any other field of the model's shape (`ModelConfig`), repeatable, as in write_rule=gradient",
    )
    group.add_argument("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer (default: train one)")
    group.add_argument(
        "--start", type=Path, metavar="FOLDER", help="begin with this checkpoint's weights and tokenizer"
    )
    group.add_argument(
        "--retain",
        type=_numbers,
        metavar="NUMBERS",
        help="with --start: add to each head's retention bias first, by commas, in every layer; with 1 more it forgets "
        "after some 2.7 times as many tokens, which training, seeing few in a row, does not find by itself",
    )


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
    group.add_argument(
        "--capture",
        action="store_true",
        help="with --device cuda: each step's loss and gradients as one CUDA graph. A small model's step is thousands "
        "of small kernels, which a GPU runs faster than it can be told to start them",
    )
    group.add_argument(
        "--makers",
        type=int,
        default=0,
        metavar="PROCESSES",
        help="make the dialogues ahead in so many processes of their own (default 0: in this one, as a CPU's steps "
        "take far longer than their dialogues). The same dialogues, whatever the number",
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


def stage_of(text: str) -> tuple[int, Stage]:
    """A stage of the curriculum and the step it begins with, from its text."""
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

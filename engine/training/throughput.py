"""`hope train --throughput`: what threads, compiling, bfloat16 and checkpointing do to the speed of training here.

All settings take turns in one run, so that a busy machine slows them alike: read the ratios. Rows are random tokens;
drawing dialogues is not in the figures. Writes no files.

Shapes: B rows, T tokens, N chosen targets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.config import ModelConfig
from engine.model.hope import Hope
from engine.training.dialogue import Stage
from engine.training.objective import Objective
from engine.training.segments import checkpoint_segments, compile_segments, keep_segments_in_float32

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Setting:
    """One way to make the same steps."""

    name: str
    threads: int = 1
    compiled: bool = False
    precision: str = "float32"
    checkpointing: bool = False


def settings_of(threads: int) -> tuple[Setting, ...]:
    """What is measured; without the settings of several threads where `threads` is 1."""
    several = Setting(f"{threads} threads", threads)
    settings = (
        Setting("1 thread"),
        several,
        Setting("bfloat16", precision="bfloat16"),
        Setting("checkpointing", checkpointing=True),
        Setting("compiled", compiled=True),
        replace(several, name=f"compiled, {several.name}", compiled=True),
        Setting("compiled, bfloat16", compiled=True, precision="bfloat16"),
        Setting("compiled, checkpointing", compiled=True, checkpointing=True),
    )
    return tuple(setting for setting in settings if threads > 1 or not setting.name.endswith(several.name))


@dataclass(frozen=True)
class Speed:
    """What was measured of a setting.

    Attributes:
        tokens_per_s: of the median step, forward, backward and optimizer.
        ratio: median, over the rounds, of this setting's speed over the first one's in the same round.
        kept_bytes: what a step keeps for the way back.
    """

    setting: Setting
    tokens_per_s: float
    ratio: float
    kept_bytes: int


def measure(
    config: ModelConfig,
    stage: Stage,
    settings: Sequence[Setting],
    device: str = "cpu",
    rounds: int = 5,
    show_progress: bool = False,
) -> list[Speed]:
    """Speeds of all settings; the first is what the others are compared with.

    Args:
        config: the model's shape.
        stage: length and number of rows of a step.
        settings: of several threads, on a machine where others are busy, a step may take many times as long.
        rounds: timed steps of every setting, after one that is not timed.
    """
    threads = torch.get_num_threads()
    try:
        contestants = [_Contestant(config, stage, setting, device) for setting in settings]
        bar = tqdm(total=len(settings) * (rounds + 1), disable=not show_progress, unit="step")
        kept, seconds = [], []
        for setting, contestant in zip(settings, contestants, strict=True):
            bar.set_description(setting.name)
            kept.append(contestant.warm_up())
            bar.update()
        for _ in range(rounds):
            seconds.append([contestant.step_s() for contestant in contestants])
            bar.update(len(settings))
        bar.close()
    finally:
        torch.set_num_threads(threads)
    num_tokens = stage.num_rows * stage.num_tokens
    speeds = []
    for index, setting in enumerate(settings):
        own = [row[index] for row in seconds]
        ratio = statistics.median(row[0] / row[index] for row in seconds)
        speeds.append(Speed(setting, num_tokens / statistics.median(own), ratio, kept[index]))
    return speeds


def table(speeds: Sequence[Speed]) -> Iterator[str]:
    """Lines to print."""
    yield f"{'':<26}{'tokens/s':>10}{'ratio':>8}{'kept for the way back':>24}"
    for speed in speeds:
        kept = f"{speed.kept_bytes / MEBIBYTE:.0f} MiB"
        yield f"{speed.setting.name:<26}{speed.tokens_per_s:>10,.0f}{speed.ratio:>8.2f}{kept:>24}"


class _Contestant:
    """A model in one setting, with its optimizer and its rows."""

    def __init__(self, config: ModelConfig, stage: Stage, setting: Setting, device: str) -> None:
        torch.manual_seed(0)
        self._threads, self._device = setting.threads, device
        model = Hope(config).to(device)
        if setting.compiled:
            compile_segments(model)
        if setting.precision != "float32":
            keep_segments_in_float32(model)
        if setting.checkpointing:
            checkpoint_segments(model)
        self._objective = Objective(model, setting.precision)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        rows_BT = torch.randint(config.vocab_size, (stage.num_rows, stage.num_tokens + 1), device=device)
        self._tokens_BT, self._target_BT = rows_BT[:, :-1], rows_BT[:, 1:]
        # As in dialogues, about half of the places carry loss.
        self._chosen_N = torch.arange(0, stage.num_rows * stage.num_tokens, 2, device=device)

    def warm_up(self) -> int:
        """One step that is not timed (it compiles); then the bytes that another one keeps for the way back."""
        self.step_s()
        self._optimizer.zero_grad()
        with KeptBytes(self._objective) as kept:
            loss = self._loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return kept.total

    def step_s(self) -> float:
        """Seconds of one step."""
        torch.set_num_threads(self._threads)
        self._wait()
        started = time.perf_counter()
        self._optimizer.zero_grad()
        self._loss().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._wait()
        return time.perf_counter() - started

    def _loss(self) -> Tensor:
        weight_BT = torch.ones_like(self._tokens_BT, dtype=torch.float32)
        loss: Tensor = self._objective(self._tokens_BT, self._target_BT, weight_BT, self._chosen_N, None)[0]
        return loss / len(self._chosen_N)

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()


class KeptBytes:
    """Counts, while it is entered, the bytes that autograd keeps for the way back; parameters are there anyway."""

    def __init__(self, module: nn.Module) -> None:
        self._storages = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self.total = 0

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Views of one storage are kept once. A storage that is gone would free its address; what is kept stays.
        if storage.data_ptr() not in self._storages:
            self._storages.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor

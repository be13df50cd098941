"""`hope bench`: what reading, speaking and saving cost on this machine, beside its raw limit and, if there, a peer.

Absolute figures of a shared machine drift; read the ratios. Knows no table of quality.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from engine.config import (
    CMS_FAST,
    CMS_MEDIUM,
    CMS_SLOW,
    EngineSettings,
    LevelConfig,
    ModelConfig,
    StoreSettings,
)
from engine.core import DEFAULT_TENANT
from engine.engine import Engine
from engine.evaluation.recall import ask
from engine.evaluation.silent import SilentObserver
from engine.model.hope import Hope, Memory
from engine.model.portable import pack_row
from engine.model.shared import initial_shared
from engine.sessions.records import write_turn
from engine.training.talk import Talk

DESCRIPTION = """Measure speed and size on this machine, with learning on.

  hope bench                 4 layers, width 128, one thread
  hope bench --width 256     the width of the shipped checkpoint
  hope bench --peer          beside titans-pytorch (pip install titans-pytorch)

Reading is one call over a text with all memory updates; decoding is token by token, at growing context. The raw
limit is a plain matrix product of this machine, given as the time that the same multiplications would take."""

CONTEXTS = (64, 1024, 4096)
DECODE_TOKENS = 64


def bench_config(width: int, layers: int) -> ModelConfig:
    """The measured shape: heads of 64, CMS levels of half, half and twice the width."""
    levels = (
        LevelConfig(CMS_FAST, width // 2, "session", 0.1),
        LevelConfig(CMS_MEDIUM, width // 2, "session", 0.1),
        LevelConfig(CMS_SLOW, 2 * width, "tenant", 0.0),
    )
    return ModelConfig(width=width, num_layers=layers, num_heads=max(1, width // 64), levels=levels)


def run_bench(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        "hope bench", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads (default 1)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each measurement; the median is shown")
    parser.add_argument("--turns", type=int, default=50, help="turns of the session whose commits are timed")
    parser.add_argument("--peer", action="store_true", help="also measure titans-pytorch, which must be installed")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there as JSON")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    figures: dict[str, object] = {
        "machine": f"{platform.machine()}, {given.threads} thread(s), torch {torch.__version__}",
        "shape": f"{given.layers} layers, width {given.width}",
    }
    steps: list[tuple[str, Callable[[], dict[str, float]]]] = [
        ("model", lambda: measure_model(given.width, given.layers, given.repeats)),
        ("session", lambda: asyncio.run(measure_session(given.turns))),
    ]
    if given.peer:
        steps.insert(1, ("peer", lambda: measure_peer(given.width, given.layers, given.repeats)))
    for name, step in tqdm(steps, unit="part"):
        figures[name] = step()
    print(_report(figures))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


@torch.no_grad()
def measure_model(width: int, layers: int, repeats: int) -> dict[str, float]:
    """Reading in tokens/s (batch 1 and 8, 1,024 tokens), decoding in ms a token, state in bytes."""
    model = Hope(bench_config(width, layers)).eval()
    figures: dict[str, float] = {}
    for rows in (1, 8):
        tokens, memory = _text(rows, 1024), model.initial_memory(rows)
        seconds = _median_s(partial(model, tokens, memory), repeats)
        figures[f"read_tokens_per_s_batch_{rows}"] = rows * 1024 / seconds
        if rows == 1:
            figures["read_over_raw_limit"] = seconds / _raw_s(model, 1024, repeats)
    for context in CONTEXTS:
        for rows in (1, 8):
            _, memory = model(_text(rows, context), model.initial_memory(rows))
            figures[f"decode_ms_per_token_batch_{rows}_context_{context}"] = _decode_ms(model, memory, rows)
    _, memory = model(_text(1, 1000), model.initial_memory(1))
    packed = pack_row(memory, model.config.chunk_projections)
    figures["state_bytes"] = float(sum(t.numel() * t.element_size() for t in packed.values()))
    return figures


async def measure_session(num_turns: int) -> dict[str, float]:
    """The bundled checkpoint over a real store: commit, whole turn, and what it takes in store and process."""
    with tempfile.TemporaryDirectory(prefix="hope-bench-") as folder:
        engine = await Engine.open(EngineSettings(), StoreSettings(data_dir=Path(folder)), SilentObserver())
        try:
            session = await engine.create_session(DEFAULT_TENANT, None, {}, False)
            pairs = Talk(None).runs["bundled"]
            turns = [await ask(engine, session.id, pairs[number % len(pairs)][0][0]) for number in range(num_turns)]
            stored = await engine.session(DEFAULT_TENANT, session.id)
            versions = await engine.versions(DEFAULT_TENANT, session.id)
            sizes = measure_sizes(engine.model)
        finally:
            await engine.close()
    return {
        "commit_ms_p50": statistics.median(turn.timing.commit_ms for turn in turns),
        "turn_ms_p50": statistics.median(turn.timing.total_ms for turn in turns),
        "first_token_ms_p50": statistics.median(turn.timing.first_token_ms for turn in turns),
        "memory_bytes": float(stored.memory_bytes),
        "kept_versions_bytes": float(sum(version.bytes for version in versions)),
        "transcript_bytes_per_turn": statistics.mean(len(write_turn(turn).encode()) for turn in turns),
        **sizes,
        "turns": float(num_turns),
    }


@torch.no_grad()
def measure_sizes(model: Hope) -> dict[str, float]:
    """What a session's memory may take at most in the store and takes in a process, and what a generation takes."""
    memory, shared = model.initial_memory(1), initial_shared(model)
    return {
        "largest_memory_bytes": _stored_bytes(memory),
        "resident_memory_bytes": float(sum(value.numel() * value.element_size() for value in memory.values())),
        "generation_bytes": _stored_bytes(shared),
    }


def _stored_bytes(memory: Memory) -> float:
    """With every tensor written, floats in bfloat16; without the header of some kilobytes."""
    return float(sum(v.numel() * (2 if v.is_floating_point() else v.element_size()) for v in memory.values()))


@torch.no_grad()
def measure_peer(width: int, layers: int, repeats: int) -> dict[str, float]:
    """titans-pytorch's memory-as-context transformer of the same depth and width, reading 1,024 tokens."""
    if importlib.util.find_spec("titans_pytorch") is None:
        raise SystemExit("hope bench: --peer needs titans-pytorch: pip install titans-pytorch")
    from titans_pytorch import MemoryAsContextTransformer  # type: ignore[import-not-found]

    peer = MemoryAsContextTransformer(num_tokens=4096, dim=width, depth=layers, segment_len=64).eval()
    tokens = _text(1, 1024)
    return {"titans_pytorch_read_tokens_per_s": 1024 / _median_s(lambda: peer(tokens), repeats)}


def _text(rows: int, num_tokens: int) -> torch.Tensor:
    return torch.randint(8, 4096, (rows, num_tokens), generator=torch.Generator().manual_seed(1))


def _median_s(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _decode_ms(model: Hope, memory: dict[str, torch.Tensor], rows: int) -> float:
    token = _text(rows, 1)
    times = []
    for _ in range(DECODE_TOKENS):
        begun = time.perf_counter()
        _, memory = model(token, memory)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1000


def _raw_s(model: Hope, num_tokens: int, repeats: int) -> float:
    """Seconds a plain product takes for as many multiplications as the model has parameters, a token."""
    size = sum(parameter.numel() for parameter in model.parameters())
    inner = 512
    left, right = torch.randn(num_tokens, inner), torch.randn(inner, size // inner)
    return _median_s(lambda: left @ right, repeats)


def _report(figures: dict[str, object]) -> str:
    lines = [f"{figures['machine']}; {figures['shape']}"]
    for part, values in figures.items():
        if isinstance(values, dict):
            lines += [f"  {part:8s} {name:45s} {value:14,.2f}" for name, value in values.items()]
    return "\n".join(lines)

"""`hope bench` on shapes so small that it takes a moment: every figure is there, counted rightly, and written down."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW
from engine.evaluation import bench
from engine.evaluation.bench import bench_config, measure_model, measure_peer, measure_session, run_bench
from engine.model import weights

CONTEXTS = (8, 16)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> Iterator[None]:
    """Short contexts, few tokens, a tiny model as the bundled one; torch is left as it was."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(bench, "CONTEXTS", CONTEXTS)
    monkeypatch.setattr(bench, "DECODE_TOKENS", 3)
    monkeypatch.setattr(weights, "bundled_checkpoint", lambda: checkpoint)
    yield
    torch.set_num_threads(threads)


def installed(monkeypatch: pytest.MonkeyPatch, peer: ModuleSpec | None) -> None:
    """Makes titans-pytorch one that is installed, or one that is not."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return peer if name == "titans_pytorch" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_the_measured_shape_follows_the_width() -> None:
    config = bench_config(128, 4)
    assert (config.width, config.num_layers, config.num_heads) == (128, 4, 2)
    assert [(level.name, level.hidden) for level in config.levels] == [
        (CMS_FAST, 64),
        (CMS_MEDIUM, 64),
        (CMS_SLOW, 256),
    ]
    assert bench_config(32, 1).num_heads == 1


def test_the_model_is_measured_alone_and_in_a_batch_at_every_context() -> None:
    figures = measure_model(16, 1, 1)
    decoding = {f"decode_ms_per_token_batch_{rows}_context_{context}": rows for rows in (1, 8) for context in CONTEXTS}
    reading = {f"read_tokens_per_s_batch_{rows}" for rows in (1, 8)}
    assert figures.keys() == decoding.keys() | reading | {"read_over_raw_limit", "state_bytes"}
    assert all(value > 0 for value in figures.values())
    assert figures["state_bytes"] < measure_model(32, 1, 1)["state_bytes"], "a wider model holds more"


async def test_a_session_is_measured_in_whole_turns() -> None:
    figures = await measure_session(2)
    sizes = {"largest_memory_bytes", "resident_memory_bytes", "generation_bytes"}
    stored = {"memory_bytes", "kept_versions_bytes", "transcript_bytes_per_turn"}
    assert figures.keys() == {"commit_ms_p50", "turn_ms_p50", "first_token_ms_p50", "turns"} | stored | sizes
    assert figures["turns"] == 2.0
    assert 0 < figures["commit_ms_p50"] < figures["turn_ms_p50"]
    assert 0 < figures["first_token_ms_p50"] < figures["turn_ms_p50"]
    assert 1000 < figures["memory_bytes"] < figures["largest_memory_bytes"] + 16_384
    assert figures["memory_bytes"] < figures["kept_versions_bytes"] <= 2 * figures["memory_bytes"]
    assert figures["resident_memory_bytes"] > figures["largest_memory_bytes"]
    assert figures["transcript_bytes_per_turn"] > 100


def test_the_command_measures_all_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    flags = ["--width", "16", "--layers", "1", "--repeats", "1", "--turns", "1", "--threads", "1", "--out", str(out)]
    assert run_bench(flags) == 0
    figures = json.loads(out.read_text())
    assert figures.keys() == {"machine", "shape", "model", "session"}
    assert figures["shape"] == "1 layers, width 16"
    assert "1 thread(s)" in figures["machine"]
    assert figures["session"]["turns"] == 1.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{figures['machine']}; {figures['shape']}"
    shown = [line.split()[:2] for line in lines[1:]]
    assert shown == [[part, name] for part in ("model", "session") for name in figures[part]]


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    with pytest.raises(SystemExit, match="pip install titans-pytorch"):
        measure_peer(16, 1, 1)


def test_a_peer_is_measured_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Transformer(torch.nn.Module):
        def __init__(self, **shape: int) -> None:
            super().__init__()
            built.append(shape)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens + 1

    built: list[dict[str, int]] = []
    peer = ModuleType("titans_pytorch")
    monkeypatch.setattr(peer, "MemoryAsContextTransformer", Transformer, raising=False)
    monkeypatch.setitem(sys.modules, "titans_pytorch", peer)
    installed(monkeypatch, ModuleSpec("titans_pytorch", None))
    assert measure_peer(16, 1, 1)["titans_pytorch_read_tokens_per_s"] > 0
    assert [(shape["dim"], shape["depth"]) for shape in built] == [(16, 1)]

"""What ships from a run: its weights under a card whose every figure comes from the run, and its curves."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

from engine.errors import HopeError
from engine.model.weights import fingerprint, load_checkpoint, save_checkpoint
from engine.training import card
from engine.training.beginning import history
from engine.training.blend import Blend
from engine.training.card import CARD_FILE, CURVES_FILE, draw_curves, export
from engine.training.command import run_training
from engine.training.trainer import LOG_FILE
from tests.engine.training.samples import new_trainer
from tests.tiny import same_bits

Drawn = list[tuple[Sequence[dict[str, float]], Path]]

# As a run writes it, with figures that no run of two steps would have.
LOG: list[dict[str, float]] = [
    {"step": step, "loss": 9.0 if step <= 20 else 1.25, "seconds": 1.0, "tokens": step * 100} for step in range(1, 121)
]
LOG[59] |= {"recall": 0.111, "recall_tokens": 0.222}
LOG[119] |= {"recall": 0.625, "recall_tokens": 0.875}

RECALL = {
    "table": "recall",
    "relations": "open",
    "phrases": "held-out",
    "rates": {"cms.fast": 0.0, "cms.medium": 0.5},
    "rows": [
        {"turns": 1, "recall": 0.912, "spread": 0.034, "runs": [0.912]},
        {"turns": 20, "recall": 0.456, "spread": 0.078, "runs": [0.456]},
    ],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps whose log says `LOG`."""
    folder = tmp_path_factory.mktemp("run")
    new_trainer(folder, steps=2, command="hope train --out runs/sample").run(
        save_every=2, probe_every=2, show_progress=False
    )
    (folder / LOG_FILE).write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return folder


@pytest.fixture
def recall(tmp_path: Path) -> Path:
    """A result of `hope eval recall`."""
    path = tmp_path / "recall.json"
    path.write_text(json.dumps(RECALL))
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Curves that were asked for; none is drawn, so that the extra `plots` is not needed."""
    asked: Drawn = []
    stand_in = ModuleType("matplotlib")
    stand_in.__spec__ = ModuleSpec("matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib", stand_in)
    monkeypatch.setattr(card, "draw_curves", lambda log, path: asked.append((log, path)))
    return asked


def test_the_checkpoint_is_the_runs(finished: Path, recall: Path, tmp_path: Path, drawn: Drawn) -> None:
    export(finished, tmp_path / "out", [recall])
    model, tokenizer = load_checkpoint(tmp_path / "out")
    trained, trained_tokenizer = load_checkpoint(finished)
    assert same_bits(model.state_dict(), trained.state_dict())
    assert model.config == trained.config
    assert tokenizer.encode("My dog is called Rex.") == trained_tokenizer.encode("My dog is called Rex.")
    assert fingerprint(model) == fingerprint(trained)
    assert drawn == [(LOG, tmp_path / "out" / CURVES_FILE)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CARD_FILE, "model.safetensors", "tokenizer.json"}


def test_figures_on_the_card_come_from_the_run(finished: Path, recall: Path, tmp_path: Path, drawn: Drawn) -> None:
    export(finished, tmp_path / "out", [recall])
    text = (tmp_path / "out" / CARD_FILE).read_text()
    model = load_checkpoint(finished)[0]
    assert "| loss, last 100 steps | 1.250 nats" in text, "the first twenty steps do not count"
    assert "62.5% of held-out values whole, 87.5% of their tokens" in text
    assert "11.1%" not in text
    assert "| tokens seen | 576 in 2 steps |" in text
    assert "| command | `hope train --out runs/sample` |" in text
    assert f"`{fingerprint(model)}`" in text
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters" in text
    assert "2 layers, width 32, 2 heads" in text
    assert "cms.fast 16, cms.medium 16, cms.slow 24" in text
    assert f"]({CURVES_FILE})" in text


def test_results_of_evaluations_are_tables_on_the_card(
    finished: Path, recall: Path, tmp_path: Path, drawn: Drawn
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**RECALL, "relations": "training", "rates": {}}))
    export(finished, tmp_path / "out", [recall, other])
    text = (tmp_path / "out" / CARD_FILE).read_text()
    assert "| relations, wordings | after 1 | after 20 |" in text
    assert "| open, held-out, cms.fast off | 91.2% ± 3.4% | 45.6% ± 7.8% |" in text
    assert "| training, held-out | 91.2% ± 3.4% | 45.6% ± 7.8% |" in text


def test_the_card_counts_the_runs_it_began_with(finished: Path, tmp_path: Path, drawn: Drawn) -> None:
    run = new_trainer(tmp_path / "run", steps=2, command="hope train --out runs/next", earlier=history(finished))
    run.run(save_every=2, probe_every=2, show_progress=False)
    export(tmp_path / "run", tmp_path / "out", [])
    text = (tmp_path / "out" / CARD_FILE).read_text()
    assert "| tokens seen | 1,152 in 4 steps |" in text
    assert "| command | `hope train --out runs/sample`; then `hope train --out runs/next` |" in text
    assert history(tmp_path / "out") == history(tmp_path / "run"), "what ships can be begun with too"


def test_the_card_names_every_source_with_its_licence(
    finished: Path, recall: Path, tmp_path: Path, drawn: Drawn
) -> None:
    export(finished, tmp_path / "out", [])
    text = (tmp_path / "out" / CARD_FILE).read_text()
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", text[text.index("## Data") :], re.MULTILINE)
    assert len(rows) >= 8
    assert all(licence.strip() for _, _, licence in rows)


def test_the_command_exports_and_stops(finished: Path, recall: Path, tmp_path: Path, drawn: Drawn) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    flags = ["--out", str(finished), "--export", str(tmp_path / "out"), "--recall", str(recall)]
    assert run_training(flags) == 0
    assert "| 91.2% ± 3.4% | 45.6% ± 7.8% |" in (tmp_path / "out" / CARD_FILE).read_text()
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_without_the_extra_nothing_is_written_and_it_is_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises((SystemExit, HopeError), match="plots"):
        run_training(["--out", str(finished), "--export", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_run_is_named(tmp_path: Path, drawn: Drawn) -> None:
    with pytest.raises((SystemExit, HopeError), match=re.escape(str(tmp_path / "nothing"))):
        run_training(["--out", str(tmp_path / "nothing"), "--export", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_curves_are_a_picture_and_the_same_for_the_same_log(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, again, other = (tmp_path / f"{name}.svg" for name in ("first", "again", "other"))
    draw_curves(LOG, first)
    draw_curves(LOG, again)
    draw_curves(LOG[60:], other)
    assert ElementTree.fromstring(first.read_text()).tag.endswith("svg")
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_what_was_blended_is_shipped_and_how_stands_in_its_history(
    finished: Path, tmp_path: Path, drawn: Drawn
) -> None:
    other = tmp_path / "other"
    export(finished, other, [])
    weights, tokenizer = load_checkpoint(other)
    with torch.no_grad():
        weights.embedding.weight.zero_()
    save_checkpoint(other, weights, tokenizer, {})
    export(finished, tmp_path / "out", [], Blend(other, 0.25, "hope train --blend"))
    own, shipped = (load_checkpoint(folder)[0].embedding.weight for folder in (finished, tmp_path / "out"))
    torch.testing.assert_close(shipped, 0.25 * own)
    assert history(tmp_path / "out")[-1]["command"] == "hope train --out runs/sample && hope train --blend"
    text = (tmp_path / "out" / CARD_FILE).read_text()
    assert "`hope train --out runs/sample && hope train --blend`" in text
    assert "| loss, last 100 steps, before blending |" in text

"""The table of language modelling: its figures against a plain reckoning, its command, and a checkpoint's row."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.evaluation.study import Results, Run
from engine.evaluation.table_command import run_table
from engine.evaluation.tables import language
from engine.evaluation.tasks.language import LanguagePlan, LanguageTask
from engine.model.hope import Hope
from tests.engine.evaluation.tables.resuming import forbid_training, measured
from tests.engine.evaluation.tasks.corpora import write_corpora
from tests.tiny import tiny_model, tiny_tokenizer, write_tiny_checkpoint

CONDITIONS = ["wikitext valid", "wikitext test", "dialogues", "stories", "wikitext stream"]
BITS = ["bits per byte wikitext", "bits per byte dialogues"]
SMALL = ("--rows", "2", "--row-tokens", "32", "--stream-tokens", "64")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


def _nats(model: Hope, task: LanguageTask, condition: str, num_tokens: int) -> tuple[float, int]:
    """Sum of the losses of a passage's text, every row from an empty memory and at once; and how many they are."""
    passage, total, count = task.passages[condition], 0.0, 0
    for start in range(0, len(passage.ids) - 1, num_tokens):
        row, counts = (part[start : start + num_tokens + 1] for part in (passage.ids, passage.counts))
        logits, _ = model(torch.tensor([row[:-1]]), model.initial_memory(1, levels=False))
        losses = functional.cross_entropy(logits[0], torch.tensor(row[1:]), reduction="none")
        total += float(losses[torch.tensor(counts[1:])].sum())
        count += sum(counts[1:])
    return total, count


@torch.no_grad()
def test_perplexity_and_bits_are_those_of_a_plain_reckoning(data: Path) -> None:
    task = LanguageTask(data, tiny_tokenizer(), LanguagePlan(num_tokens=40, stream_tokens=100))
    model = tiny_model(vocab_size=task.vocab_size)
    values = dict(language.perplexities(model, task, 0))
    assert list(values) == [*CONDITIONS, *BITS]
    for condition in CONDITIONS[:4]:
        total, count = _nats(model, task, condition, 40)
        assert values[condition] == pytest.approx(math.exp(total / count), rel=1e-4)
    total, count = _nats(model, task, "wikitext test", 100)
    assert values["wikitext stream"] == pytest.approx(math.exp(total / count), rel=1e-4)
    total, _ = _nats(model, task, "dialogues", 40)
    bits = total / math.log(2) / task.passages["dialogues"].num_bytes
    assert values["bits per byte dialogues"] == pytest.approx(bits, rel=1e-4)


def test_the_table_has_its_columns_and_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--data", str(data), *SMALL)
    runs = measured("language", tmp_path, *flags)
    assert [(run.model, list(run.values)) for run in runs] == [
        (name, [*CONDITIONS, *BITS]) for name in ("hope", "gated-deltanet")
    ]
    # Two steps from nowhere: not far from guessing all 4096 tokens alike.
    assert all(500 < run.values[name] < 20_000 for run in runs for name in CONDITIONS)
    forbid_training(monkeypatch)
    assert measured("language", tmp_path, *flags) == runs
    for other in (("--width", "32"), ("--layers", "1"), ("--row-tokens", "48"), ("--stream-tokens", "96")):
        with pytest.raises(AssertionError, match="there already"):
            measured("language", tmp_path, *flags, *other)


def test_a_checkpoint_is_measured_on_wikitext_without_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_training(monkeypatch)
    folder = write_tiny_checkpoint(tmp_path / "checkpoint")
    flags = ["--models", "", "--data", str(data), "--checkpoint", str(folder), "--results", str(tmp_path), *SMALL]
    assert run_table("language", flags) == 0
    (run,) = Results(tmp_path / "language.jsonl").runs
    assert run.model == "checkpoint"
    assert list(run.values) == ["wikitext valid", "wikitext test", "wikitext stream", BITS[0]]
    assert run.notes["parameters"] > 0
    assert "| checkpoint |" in capsys.readouterr().out
    monkeypatch.setattr(language, "perplexities", None)
    assert run_table("language", flags) == 0, "it is there already"
    write_tiny_checkpoint(folder, seed=1)
    with pytest.raises(TypeError):
        run_table("language", flags)


def test_without_data_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--data"):
        run_table("language", ["--results", str(tmp_path)])


def test_remarks_are_ratios_beside_the_paper_s() -> None:
    def run(name: str, seed: int, value: float) -> Run:
        return Run("language", name, seed, {}, {"wikitext test": value})

    runs = [run("hope", 0, 90.0), run("hope", 1, 110.0), run("titans", 0, 80.0), run("transformer", 0, 200.0)]
    said = language.remarks(runs)
    assert "1.250 to titans (0.922)" in said
    assert "0.500 to transformer (0.803)" in said
    assert "samba" not in said
    assert language.remarks(runs[2:]) == ""

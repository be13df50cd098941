"""The table of translation: every contestant read and fine-tuned, references beside, greedy and alone in a batch."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from engine.errors import InvalidRequest
from engine.evaluation.contestants import Shape, build
from engine.evaluation.report import markdown_table
from engine.evaluation.study import Results
from engine.evaluation.tables import translation
from engine.tokenizer import END
from tests.engine.evaluation.tasks.samples import write_kalamang
from tests.tiny import tiny_model

SMALL = "--sentences 2 --width 32 --layers 1 --tuning-steps 2"
CONDITIONS = ["kgv-en read", "en-kgv read", "kgv-en fine-tuned", "en-kgv fine-tuned"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """The tiny checkpoint's tokenizer in place of the shipped one."""
    monkeypatch.setattr(translation, "bundled_checkpoint", lambda: checkpoint)


def given(data: Path | None, models: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    translation.arguments(parser)
    common = {"models": models.split(","), "seeds": 1, "steps": 2, "rates": (1e-3,), "data": data}
    return argparse.Namespace(**vars(parser.parse_args(SMALL.split())), **common)


def test_contestants_and_references_have_their_rows_and_no_run_is_made_twice(tmp_path: Path) -> None:
    data, path = write_kalamang(tmp_path / "data"), tmp_path / "translation.jsonl"
    runs = translation.measure(given(data, "hope,transformer"), Results(path))
    assert [run.model for run in runs] == ["(source copied)", "(word for word)", "hope", "transformer"]
    assert all(list(run.values) == CONDITIONS for run in runs[2:])
    assert all(0.0 <= value <= 100.0 for run in runs for value in run.values.values())
    assert runs[1].values["kgv-en read"] > runs[0].values["kgv-en read"], "the word list knows two of five words"
    assert len(markdown_table(runs, percent=translation.PERCENT).splitlines()) == 6
    results = Results(path)
    assert translation.measure(given(data, "hope,transformer"), results) == runs
    assert len(results.runs) == 4


@pytest.mark.parametrize("name", ["hope", "transformer"])
def test_a_translation_is_the_likeliest_and_does_not_depend_on_the_others(name: str) -> None:
    torch.manual_seed(0)
    model = tiny_model() if name == "hope" else build(name, Shape(64, 32, 1)).eval()
    questions = [[9, 10, 11], [12, 13, 14, 15, 16, 17, 18], [20]]
    together = translation.translate(model, questions, 6)
    assert together == [translation.translate(model, [one], 6)[0] for one in questions]
    said = list(questions[0])
    for token in together[0]:
        with torch.no_grad():
            x_BTD, _ = model.hidden(torch.tensor([said]), model.initial_memory(1, levels=False))  # type: ignore[operator]
            assert int(model.logits(x_BTD[0, -1]).argmax()) == token  # type: ignore[operator]
        said.append(token)
    assert all(END not in one and len(one) <= 6 for one in together)


def test_a_translation_ends_where_the_model_ends_it() -> None:
    # An untrained model with a tied embedding says again what it read last.
    model = tiny_model()
    assert translation.translate(model, [[9, 10, 11], [9, 10, END]], 5) == [[11] * 5, []]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--data FOLDER"):
        translation.measure(given(None, "hope"), Results(tmp_path / "translation.jsonl"))

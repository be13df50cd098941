"""Dialogues made ahead: the same ones, whatever the processes, the stages and the step a run is resumed at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.training.ahead import Ahead
from engine.training.data import Batch, DialogueData
from engine.training.dialogue import Stage
from tests.engine.training.samples import dialogue_tokenizer, log_of, new_trainer, talk

SHORT = Stage(num_tokens=24, num_rows=3, most_facts=3, talk=0.3)
LONG = Stage(num_tokens=24, num_rows=2, most_facts=3, talk=0.3, segments=3)
LAST = 11


def stages(step: int) -> Stage:
    """Short dialogues, then long ones, the first of which begins before its stage does."""
    return SHORT if step < 4 else LONG


def new_data() -> DialogueData:
    return DialogueData(dialogue_tokenizer(), talk(), 5)


@pytest.fixture(scope="module")
def by_itself() -> list[Batch]:
    """All batches, made where they are used."""
    data = new_data()
    return [data.batch(step, stages(step)) for step in range(LAST)]


@pytest.fixture
def unmade(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first steps of dialogues that this process had to make."""
    made: list[int] = []
    real = DialogueData.dialogues

    def counted(self: DialogueData, first_step: int, stage: Stage, count: int, **held_out: bool) -> object:
        made.append(first_step)
        return real(self, first_step, stage, count, **held_out)

    monkeypatch.setattr(DialogueData, "dialogues", counted)
    return made


def test_batches_are_those_made_without_it(by_itself: list[Batch], unmade: list[int]) -> None:
    data = new_data()
    with Ahead(data, stages, 1, LAST, 2) as ahead:
        data.source = ahead.rows
        for step in range(1, LAST):
            batch, expected = data.batch(step, stages(step)), by_itself[step]
            assert torch.equal(batch.tokens_BT, expected.tokens_BT)
            assert torch.equal(batch.weight_BT, expected.weight_BT)
            assert torch.equal(batch.value_BT, expected.value_BT)
    assert unmade == []


def test_what_was_not_foreseen_is_made_at_once(by_itself: list[Batch], unmade: list[int]) -> None:
    data = new_data()
    with Ahead(data, lambda step: LONG, 0, LAST, 1) as ahead:
        data.source = ahead.rows
        assert torch.equal(data.batch(2, SHORT).tokens_BT, by_itself[2].tokens_BT)
        assert unmade == [2]
        assert torch.equal(data.batch(9, LONG).tokens_BT, by_itself[9].tokens_BT)
    assert unmade == [2], "what lay between was passed over"


def test_a_run_learns_the_same_with_makers(tmp_path: Path) -> None:
    for folder, makers in (("alone", 0), ("made", 1)):
        trainer = new_trainer(tmp_path / folder)
        trainer.run(save_every=10, probe_every=10, makers=makers, show_progress=False)
    alone, made = (log_of(tmp_path / folder) for folder in ("alone", "made"))
    assert [row["loss"] for row in alone] == [row["loss"] for row in made]

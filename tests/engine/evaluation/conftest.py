"""A tiny checkpoint for evaluations to run on, and ears in place of the recall run's own turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.evaluation import recall
from tests.engine.evaluation.samples import Ears
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model's checkpoint."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), writes_hard=False)


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Ears:
    """Hears every turn of a recall run."""
    found = Ears()
    monkeypatch.setattr(recall, "ask", found.ask)
    return found

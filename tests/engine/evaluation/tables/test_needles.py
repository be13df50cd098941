"""The table of needles, end to end: its columns, and a second call that trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from tests.engine.evaluation.tables.resuming import check_runs, forbid_training, measured

FLAGS = ("--rows", "2", "--lengths", "256", "--longest", "512")


def test_the_table_has_a_column_a_kind_and_length_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = measured("needles", tmp_path, *FLAGS)
    check_runs(runs, ["S-1 256", "S-1 512", "S-2 256", "S-3 256", "MK 256", "MQ 256", "MV 256"])
    forbid_training(monkeypatch)
    assert measured("needles", tmp_path, *FLAGS) == runs
    with pytest.raises(AssertionError, match="there already"):
        measured("needles", tmp_path, *FLAGS[:-1], "0")


def test_a_folder_without_stories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="lacks"):
        measured("needles", tmp_path, *FLAGS, "--data", str(tmp_path))

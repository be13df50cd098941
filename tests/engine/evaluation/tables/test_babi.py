"""The table of bAbI's facts, end to end: its columns, and a second call that trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from tests.engine.evaluation.tables.resuming import check_runs, forbid_training, measured

FLAGS = ("--rows", "2", "--lengths", "128,1024")


def test_the_table_has_a_column_a_length_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = measured("babi", tmp_path, *FLAGS)
    check_runs(runs, ["128", "1K"])
    forbid_training(monkeypatch)
    assert measured("babi", tmp_path, *FLAGS) == runs
    with pytest.raises(AssertionError, match="there already"):
        measured("babi", tmp_path, "--rows", "2", "--lengths", "256")


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="lacks"):
        measured("babi", tmp_path, *FLAGS, "--data", str(tmp_path))

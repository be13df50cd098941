"""The table of formal languages, end to end: its columns, and a second call that trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.evaluation.tasks.formal import LANGUAGES
from tests.engine.evaluation.tables.resuming import check_runs, forbid_training, measured

FLAGS = ("--longest", "8", "--chunk", "4")


def test_the_table_has_a_column_a_language_and_bin_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = measured("formal", tmp_path, *FLAGS)
    check_runs(runs, [f"{language.name} {number}" for language in LANGUAGES for number in (0, 1)])
    forbid_training(monkeypatch)
    assert measured("formal", tmp_path, *FLAGS) == runs
    with pytest.raises(AssertionError, match="there already"):
        measured("formal", tmp_path, "--longest", "8", "--chunk", "8")

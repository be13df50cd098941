"""The table of associative recall, end to end: its columns, and a second call that trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.evaluation.tables.resuming import check_runs, forbid_training, measured


def test_the_table_has_a_column_a_number_of_pairs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = measured("mqar", tmp_path, "--rows", "2")
    check_runs(runs, ["pairs 4", "pairs 8", "pairs 16", "pairs 32", "pairs 64"])
    forbid_training(monkeypatch)
    assert measured("mqar", tmp_path, "--rows", "2") == runs
    with pytest.raises(AssertionError, match="there already"):
        measured("mqar", tmp_path, "--rows", "3")

"""The part of the house style that a machine can see and ruff does not.

Lengths, how a file opens, and that nothing is left undone.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("engine", "server", "clients/python", "tests")
FILES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
# Spelled in halves, so that this file does not find itself.
UNDONE = re.compile("TO" + "DO|FIX" + "ME|XX" + "X|NotImplemented" + "Error")

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_reads_at_one_sitting(path: Path) -> None:
    source = path.read_text("utf-8")
    syntax = ast.parse(source)
    assert len(source.splitlines()) <= MAX_FILE_LINES
    too_long = [
        f"{node.name}:{node.lineno}"
        for node in ast.walk(syntax)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert too_long == []
    assert ast.get_docstring(syntax) or not syntax.body, "a file opens by saying what it is"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_is_left_undone(path: Path) -> None:
    assert UNDONE.findall(path.read_text("utf-8")) == []

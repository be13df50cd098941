"""What is installed: everything that lies in the packages is shipped, and the pins cover what is asked for.

Reads pyproject.toml and constraints.txt; builds nothing.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
PACKAGE_DATA: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]


@pytest.mark.parametrize("package", sorted(PACKAGE_DATA))
def test_every_file_of_a_package_is_shipped(package: str) -> None:
    folder = REPOSITORY / package
    lying_there = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    shipped = {path for pattern in PACKAGE_DATA[package] for path in folder.glob(pattern)}
    assert lying_there - shipped == set()
    assert folder / "py.typed" in shipped


@pytest.mark.parametrize("package", sorted(PACKAGE_DATA))
def test_every_folder_with_code_is_a_package(package: str) -> None:
    folders = {path.parent for path in (REPOSITORY / package).rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_every_dependency_is_pinned() -> None:
    asked = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        asked += extra
    names = {_normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in asked}
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {_normal(line.partition("==")[0]) for line in lines if "==" in line}
    assert names - pinned == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

"""One function out of a Python file of the user's own: how a researcher adds a model or an optimizer in one file.

The file runs with the rights of whoever names it. Knows nothing of what the function does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import InvalidRequest


def is_file(name: str) -> bool:
    """Whether a name means a Python file, and none of ours."""
    return name.endswith(".py")


def function_of(path: str | Path, name: str) -> Callable[..., Any]:
    """The function `name` of the file.

    Raises:
        InvalidRequest: there is no such file, or no such function in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidRequest(f"there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidRequest(f"'{path}' has no function '{name}'; docs/EXTENDING.md shows one")
    return function  # type: ignore[no-any-return]

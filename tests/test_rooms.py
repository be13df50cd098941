"""The room rule: who may import whom (the table in `rooms.py`), held against this repository.

Each rule is also shown to bite: a small tree that breaks it must be reported.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rooms import MAY_IMPORT, Tree, room_of, violations

REPOSITORY = Path(__file__).parents[1]

FACE = '"""The face."""\nfrom engine.engine import Engine\n\n__all__ = ["Engine"]\n'


def test_every_import_stays_in_its_room() -> None:
    assert violations(REPOSITORY) == []


def test_the_rooms_of_the_table_are_the_rooms_of_the_tree() -> None:
    strays = {module for module in Tree(REPOSITORY).files if room_of(module) not in MAY_IMPORT}
    assert {module for module in strays if not module.startswith("tests")} == set()


def test_the_face_says_what_it_exports() -> None:
    assert "Engine" in Tree(REPOSITORY).face()


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("server/app.py", "from engine.sessions.store import SessionStore", "which server may not"),
        ("server/app.py", "from engine import scheduler", "which server may not"),
        ("server/app.py", "from engine import Secret", "does not export"),
        ("server/app.py", "import engine\nengine.Secret()", "does not export"),
        ("server/app.py", "import engine as mind\nmind.scheduler.schedule()", "which server may not"),
        ("server/app.py", "def f() -> None:\n    import torch.nn", "must not know"),
        ("server/app.py", "importlib.import_module('engine.model.hope')", "which server may not"),
        ("server/app.py", "import clients.python", "which server may not"),
        ("engine/engine.py", "from server.app import app", "which engine.engine may not"),
        ("engine/runner.py", "import fastapi", "must not know"),
        ("engine/runner.py", "from engine.engine import Engine", "which engine.runner may not"),
        ("engine/runner.py", "from engine import Engine", "which engine.runner may not"),
        ("engine/runner.py", "from engine.sessions import keys", "which engine.runner may not"),
        ("engine/sessions/store.py", "from engine.model.hope import Hope", "which engine.sessions may not"),
        ("engine/sessions/store.py", "from ..model import hope", "which engine.sessions may not"),
        ("engine/model/hope.py", "from engine.sessions import keys", "which engine.model may not"),
        ("engine/model/hope.py", "import redis.asyncio", "reaches redis.asyncio"),
        ("engine/scheduler.py", "import torch", "reaches torch"),
        ("engine/core.py", "import torch", "engine.scheduler reaches torch through engine.core"),
        ("engine/config.py", "from engine import core", "which engine.config may not"),
        ("engine/errors.py", "import engine.config", "which engine.errors may not"),
        (
            "engine/consolidation/worker.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from engine.training import trainer",
            "which engine.consolidation may not",
        ),
        ("engine/helpers.py", "from engine.errors import HopeError", "stands in no room"),
        ("clients/python/hope_client.py", "from engine.core import Turn", "which clients may not"),
    ],
)
def test_a_broken_rule_is_reported(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    _plant(tmp_path)
    assert violations(tmp_path) == []
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, "utf-8")
    assert [found for found in violations(tmp_path) if complaint in found], violations(tmp_path)


def test_an_import_for_annotations_loads_nothing(tmp_path: Path) -> None:
    _plant(tmp_path)
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n"
    (tmp_path / "engine/core.py").write_text(source, "utf-8")
    assert violations(tmp_path) == []


def _plant(root: Path) -> None:
    """A small tree that keeps every rule."""
    files = {
        "engine/__init__.py": FACE,
        "engine/errors.py": "",
        "engine/config.py": "from engine.errors import HopeError",
        "engine/core.py": "from engine.config import ModelConfig",
        "engine/scheduler.py": "from engine.core import Batch",
        "engine/engine.py": "from engine import scheduler\nfrom engine.sessions import keys\nimport torch",
        "engine/model/__init__.py": "",
        "engine/model/hope.py": "import torch",
        "engine/sessions/__init__.py": "",
        "engine/sessions/keys.py": "import redis",
        "engine/training/trainer.py": "from engine.model import hope",
        "server/__init__.py": "",
        "server/app.py": "import fastapi\nfrom engine import Engine\nfrom server import cli",
        "server/cli.py": "",
    }
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")

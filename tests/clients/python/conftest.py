"""A live server for the Python client's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.settings import Settings
from tests.clients.serving import serving
from tests.server.conftest import checkpoint

__all__ = ["checkpoint"]


@pytest.fixture(scope="session")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server listens."""
    with serving(checkpoint, tmp_path_factory.mktemp("data"), Settings()) as url:
        yield url

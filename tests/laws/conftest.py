"""The models a law is tried on at the level of the engine."""

from __future__ import annotations

import pytest

from tests.tiny import SHIPPED


@pytest.fixture(params=["initial", *(["shipped"] if SHIPPED else [])])
def engine_model(request: pytest.FixtureRequest) -> str:
    """Name of a model for `tests.engines.loaded`."""
    name: str = request.param
    return name

"""The server that is fuzzed: a tiny model with keys for three tenants, in a thread or, under `make fuzz`, elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from server.auth import parse_keys
from tests.clients.serving import serving
from tests.fuzz.target import KEYS, MAX_BODY_BYTES, MAX_NEW_TOKENS, TURNS_PER_CONSOLIDATION, URL, headers_of
from tests.server.running import with_server
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server listens."""
    if URL is not None:
        yield URL
        return
    settings = with_server(MAX_NEW_TOKENS, api_keys=parse_keys(KEYS), max_body_bytes=MAX_BODY_BYTES)
    checkpoint = write_tiny_checkpoint(_new(tmp_path_factory, "checkpoint"))
    data = _new(tmp_path_factory, "data")
    with serving(checkpoint, data, settings, turns_per_consolidation=TURNS_PER_CONSOLIDATION) as found:
        yield found


@pytest.fixture
def healthy(url: str) -> Iterator[None]:
    """The server is as ready after the test as before, and has failed nobody."""
    yield
    assert httpx2.get(f"{url}/readyz", timeout=30).status_code == 200
    counters = httpx2.get(f"{url}/metrics", headers=headers_of("routes")).text
    assert 'status="200"' in counters
    assert [line for line in counters.splitlines() if 'status="500"' in line or 'status="1011"' in line] == []


def _new(factory: pytest.TempPathFactory, name: str) -> Path:
    return factory.mktemp(name)

"""Generations in a folder or an object store: written once, found by the store alone, checked when read, tidied up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import Conflict, CorruptMemory, InvalidRequest, StoreUnavailable
from engine.sessions import shelf
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from tests.engine.sessions.test_generations import NAME, TENANT, WEIGHTS, publication


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/generations" if request.param == "memory" else f"file://{tmp_path}/generations"


@pytest.fixture
async def store(embedded: EmbeddedStore, client: Redis, url: str) -> AsyncIterator[SessionStore]:
    found = await SessionStore.connect(embedded.url, StoreSettings(generations_url=url))
    yield found
    await found.close()


def files(url: str) -> list[str]:
    """Every file there, without those about them."""
    system, root = fsspec.core.url_to_fs(url)
    return sorted(path for path in system.find(root) if path.endswith(".safetensors"))


async def test_it_lies_in_a_file_and_the_store_holds_where(store: SessionStore, client: Redis, url: str) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    made, weights = await store.generations.load(TENANT, 1)
    assert weights == WEIGHTS
    (path,) = files(url)
    assert path.endswith(made.place)
    assert hashlib.sha256(WEIGHTS).hexdigest()[:16] in made.place
    system, _ = fsspec.core.url_to_fs(url)
    assert system.cat_file(path) == WEIGHTS
    about = json.loads(system.cat_file(f"{path}.json"))
    assert (about["parent"], about["taken"], about["consolidation"]["status"]) == (0, {NAME: 2}, "accepted")
    assert [key async for key in client.scan_iter("*:generation:*")] == []


async def test_a_damaged_or_missing_file_is_not_served(store: SessionStore, url: str) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    (path,) = files(url)
    system, _ = fsspec.core.url_to_fs(url)
    system.pipe_file(path, WEIGHTS[:-1] + b"!")
    with pytest.raises(CorruptMemory, match="activate another"):
        await store.generations.load(TENANT, 1)
    system.rm_file(path)
    with pytest.raises(CorruptMemory):
        await store.generations.load(TENANT, 1)


async def test_unwanted_ones_go_and_so_does_what_was_left_behind(
    store: SessionStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.generations.publish(TENANT, await publication(store.generations))
    first, _ = await store.generations.load(TENANT, 1)
    # Refused, as when a worker dies before the script: its file is not seen, and stays for now.
    late = await publication(store.generations)
    with pytest.raises(Conflict):
        await store.generations.publish(TENANT, replace(late, standing=replace(late.standing, switches=9)))
    assert len(files(url)) == 2
    monkeypatch.setattr(shelf, "ORPHAN_AFTER_S", -1.0)
    await store.generations.publish(TENANT, await publication(store.generations, unwanted=(first,)))
    (path,) = files(url)
    second, _ = await store.generations.load(TENANT, 2)
    assert path.endswith(second.place)


async def test_generations_of_before_are_read_where_they_are(
    store: SessionStore, embedded: EmbeddedStore, url: str
) -> None:
    inside = await SessionStore.connect(embedded.url, StoreSettings())
    await inside.generations.publish(TENANT, await publication(inside.generations))
    assert (await store.generations.load(TENANT, 1))[1] == WEIGHTS
    await store.generations.publish(TENANT, await publication(store.generations))
    with pytest.raises(StoreUnavailable, match="HOPE_GENERATIONS_URL"):
        await inside.generations.load(TENANT, 2)
    await inside.close()


async def test_a_place_that_does_not_answer_publishes_nothing(embedded: EmbeddedStore, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    store = await SessionStore.connect(embedded.url, StoreSettings(generations_url=f"file://{tmp_path}/taken"))
    before = await store.generations.standing(TENANT)
    made = await publication(store.generations)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.generations.publish(TENANT, made)
    assert await store.generations.standing(TENANT) == before
    await store.close()


async def test_a_url_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match=r"hope-server\[generations\]") as refused:
        await SessionStore.connect("redis://localhost", StoreSettings(generations_url="nowhere://x"))
    assert refused.value.param == "generations_url"

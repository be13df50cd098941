"""Memories under a key: they open where they belong and nowhere else, and older ones are taken over."""

from __future__ import annotations

import builtins
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from engine.config import StoreSettings
from engine.errors import CorruptMemory, InvalidRequest
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.sealing import UNSEALED, Seal, read_seal
from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import SESSION, TENANT, commit_turn, everything, keys_like, make_session
from tests.engine.sessions.test_generations import WEIGHTS, publication

SECRET = b"My dog is called Rex. " * 40_000
PLACE = ("acme", "s-1", 3)
WAYS = pytest.mark.parametrize("encrypt", [False, True], ids=["signed", "encrypted"])


def _key_file(folder: Path, *keys: str) -> Path:
    file = folder / f"{secrets.token_hex(4)}.keys"
    file.write_text("\n".join(keys or (secrets.token_hex(32),)))
    return file


@asynccontextmanager
async def _opened(embedded: EmbeddedStore, **settings: Any) -> AsyncIterator[SessionStore]:
    store = await SessionStore.connect(embedded.url, StoreSettings(**settings))
    try:
        yield store
    finally:
        await store.close()


@WAYS
@pytest.mark.parametrize("memory", [b"", b"m", SECRET], ids=len)
def test_what_was_sealed_opens_in_its_place_only(tmp_path: Path, encrypt: bool, memory: bytes) -> None:
    seal = read_seal(_key_file(tmp_path), encrypt=encrypt)
    stored = seal.close(memory, *PLACE)
    assert seal.open(stored, *PLACE) == memory
    if len(memory) > 1:  # a single byte may stand among random ones
        assert (memory in stored) != encrypt
    for other in (("other", "s-1", 3), ("acme", "s-2", 3), ("acme", "s-1", 4), ("acme", "", 3)):
        with pytest.raises(CorruptMemory, match="belongs elsewhere"):
            seal.open(stored, *other)


@WAYS
def test_a_change_of_any_byte_shows(tmp_path: Path, encrypt: bool) -> None:
    seal = read_seal(_key_file(tmp_path), encrypt=encrypt)
    stored = seal.close(b"memory", *PLACE)
    for index in range(len(b"hopeseal"), len(stored)):
        changed = bytearray(stored)
        changed[index] ^= 1
        with pytest.raises(CorruptMemory):
            seal.open(bytes(changed), *PLACE)
    for length in range(len(b"hopeseal"), len(stored)):
        with pytest.raises(CorruptMemory):
            seal.open(stored[:length], *PLACE)


@WAYS
def test_another_key_opens_nothing_and_an_older_one_in_the_file_does(tmp_path: Path, encrypt: bool) -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    stored = read_seal(_key_file(tmp_path, old), encrypt=encrypt).close(SECRET, *PLACE)
    for stranger in (read_seal(_key_file(tmp_path, new)), UNSEALED):
        with pytest.raises(CorruptMemory, match=r"a key that is not here.*HOPE_STORE_KEY_FILE"):
            stranger.open(stored, *PLACE)
    both = read_seal(_key_file(tmp_path, new, old), encrypt=not encrypt)
    assert both.open(stored, *PLACE) == SECRET
    assert read_seal(_key_file(tmp_path, new)).open(both.close(SECRET, *PLACE), *PLACE) == SECRET


@pytest.mark.parametrize("text", ["", "abcd", "x" * 64, "é"])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InvalidRequest, match="openssl rand -hex 32"):
        read_seal(tmp_path / "keys")
    with pytest.raises(InvalidRequest, match="openssl rand -hex 32"):
        read_seal(tmp_path / "nowhere")


def test_encryption_without_a_key_or_without_its_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in ({"encrypt": True}, {"refuse_unsealed": True}):
        with pytest.raises(InvalidRequest, match="HOPE_STORE_KEY_FILE"):
            read_seal(None, **asked)
    load = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    file = _key_file(tmp_path)
    assert read_seal(file).keys
    with pytest.raises(InvalidRequest, match=r"hope-server\[encryption\]"):
        read_seal(file, encrypt=True)


async def test_sessions_and_generations_are_sealed_in_the_store_and_leave_nothing(
    embedded: EmbeddedStore, client: Redis, tmp_path: Path
) -> None:
    file = _key_file(tmp_path)
    async with _opened(embedded, store_key_file=file, encrypt_memories=True) as store:
        await store.create(TENANT, make_session())
        await commit_turn(store, 0, SECRET)
        assert await store.load_memory(TENANT, SESSION) == (1, SECRET)
        head = await store.head(TENANT, SESSION)
        assert head.session.memory_bytes == len(SECRET)
        await store.generations.publish(TENANT, await publication(store.generations))
        assert (await store.generations.load(TENANT, 1))[1] == WEIGHTS
    kept = [value for name, value in (await everything(client)).items() if ":memory:" in name or "generation:" in name]
    assert len(kept) >= 7
    assert all(isinstance(value, bytes) and SECRET[:22] not in value and WEIGHTS[:64] not in value for value in kept)
    async with _opened(embedded) as store:
        with pytest.raises(CorruptMemory, match="HOPE_STORE_KEY_FILE"):
            await store.load_memory(TENANT, SESSION)
        with pytest.raises(CorruptMemory, match="HOPE_STORE_KEY_FILE"):
            await store.generations.load(TENANT, 1)
        # To erase a memory takes no key.
        await store.delete(TENANT, SESSION)
    assert await keys_like(client, f"*{SESSION}*") == []


async def test_what_was_stored_before_there_was_a_key_is_taken_over_turn_by_turn_or_refused(
    embedded: EmbeddedStore, client: Redis, tmp_path: Path
) -> None:
    async with _opened(embedded) as store:
        await store.create(TENANT, make_session())
        await commit_turn(store, 0, b"before")
    file = _key_file(tmp_path)
    async with _opened(embedded, store_key_file=file, refuse_unsealed=True) as store:
        with pytest.raises(CorruptMemory, match="HOPE_REFUSE_UNSEALED"):
            await store.load_memory(TENANT, SESSION)
    async with _opened(embedded, store_key_file=file) as store:
        assert await store.load_memory(TENANT, SESSION) == (1, b"before")
        await commit_turn(store, 1, b"after")
    async with _opened(embedded, store_key_file=file, refuse_unsealed=True) as store:
        assert await store.load_memory(TENANT, SESSION) == (2, b"after")


async def test_a_memory_put_in_anothers_place_is_not_served(
    embedded: EmbeddedStore, client: Redis, tmp_path: Path
) -> None:
    async with _opened(embedded, store_key_file=_key_file(tmp_path)) as store:
        for name in (SESSION, "s-2"):
            await store.create(TENANT, make_session(name))
        await commit_turn(store, 0, b"mine")
        # Whoever may write to the store can make the checksums fit; the seal not.
        for key in await keys_like(client, f"*{SESSION}}}:*"):
            await client.copy(key, key.replace(SESSION, "s-2"), replace=True)
        with pytest.raises(CorruptMemory, match="belongs elsewhere"):
            await store.load_memory(TENANT, "s-2")


def test_no_key_is_shown(tmp_path: Path) -> None:
    seal = read_seal(_key_file(tmp_path))
    assert repr(seal) == repr(Seal())

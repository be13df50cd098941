"""Where the bytes of generations lie: in the store itself, or as files in a folder or an object store.

A file is never changed once written, and is nothing before the store points at it. Knows no model.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from engine.errors import InvalidRequest, StoreUnavailable
from engine.sessions.connection import RETRY_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Iterator

Result = TypeVar("Result")

SUFFIX, ABOUT = ".safetensors", ".json"
# A file that nothing points at is being published, or was left behind: then this long ago.
ORPHAN_AFTER_S = 3600.0


class Shelf:
    """Files of generations under one URL, each with what is known of it beside it (JSON).

    Args:
        url: of a folder: `file:///srv/hope`, `s3://bucket/hope`, or any other that fsspec has a file system for.

    Raises:
        InvalidRequest: fsspec, or what it needs for this URL, is not installed, or there is no such file system.
    """

    def __init__(self, url: str) -> None:
        try:
            fsspec: Any = importlib.import_module("fsspec")
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidRequest(
                f"generations cannot be kept there: {error}; install `hope-server[generations]` and what the URL needs",
                param="generations_url",
            ) from error

    async def put(self, tenant: str, number: int, weights: bytes, about: Mapping[str, Any]) -> str:
        """Writes a generation; where it lies now, for `get`."""
        digest = hashlib.sha256(weights).hexdigest()
        place = f"{quote(tenant, safe='')}/{number}-{digest[:16]}-{secrets.token_hex(4)}{SUFFIX}"

        def write() -> None:
            self._files.makedirs(self._path(place).rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(self._path(place), weights)
            self._files.pipe_file(self._path(place) + ABOUT, json.dumps(about, indent=1).encode())

        await self._run(write)
        return place

    async def get(self, place: str) -> bytes:
        """The bytes that lie there; none where there is nothing."""

        def read() -> bytes:
            try:
                return bytes(self._files.cat_file(self._path(place)))
            except FileNotFoundError:
                return b""

        return await self._run(read)

    async def remove(self, places: Collection[str]) -> None:
        """Takes files away; those that are not there are left out."""

        def unlink() -> None:
            for place in places:
                for path in (self._path(place), self._path(place) + ABOUT):
                    if self._files.exists(path):
                        self._files.rm_file(path)

        await self._run(unlink)

    async def sweep(self, tenant: str, kept: Collection[str]) -> None:
        """Takes away what publications that were cut off left behind.

        Args:
            kept: the tenant's places that the store points at.
        """
        folder = quote(tenant, safe="")

        def left_behind() -> list[str]:
            names = [found.rpartition("/")[2] for found in self._files.ls(self._path(folder), detail=False)]
            places = [f"{folder}/{name}" for name in names if name.endswith(SUFFIX)]
            return [place for place in places if place not in kept and self._age_s(place) > ORPHAN_AFTER_S]

        await self.remove(await self._run(left_behind))

    def _age_s(self, place: str) -> float:
        return time.time() - float(self._files.modified(self._path(place)).timestamp())

    def _path(self, place: str) -> str:
        return f"{self._root.rstrip('/')}/{place}"

    async def _run(self, work: Callable[[], Result]) -> Result:
        with _translated():
            return await asyncio.to_thread(work)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = "the place where generations are kept does not answer; try again shortly"
        raise StoreUnavailable(message, retry_after_s=RETRY_AFTER_S) from error

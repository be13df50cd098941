"""The bytes of generations: laid down in chunks beside the store's other keys, or in files where there is a shelf.

Until the script that publishes them nobody sees them, and without it they are gone after a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import StoreUnavailable
from engine.sessions.connection import RETRY_AFTER_S, Connection
from engine.sessions.keys import TenantKeys
from engine.sessions.shelf import Shelf

if TYPE_CHECKING:
    from engine.sessions.generations import Generation

_CHUNK_BYTES = 256 * 1024
_STAGED_MS = 600_000


class LaidDown:
    """Writes and reads the bytes of generations.

    Args:
        connection: to the store.
        shelf: for the bytes of new generations; None for the store itself.
    """

    def __init__(self, connection: Connection, shelf: Shelf | None) -> None:
        self._connection, self._shelf = connection, shelf

    async def write(self, tenant: str, number: int, weights: bytes, about: Mapping[str, Any]) -> dict[str, Any]:
        """Lays a generation down; what its record says of it.

        Args:
            about: goes beside a file.
        """
        mark, place = f"{number}.{secrets.token_hex(8)}", ""
        pieces = [weights[start : start + _CHUNK_BYTES] for start in range(0, len(weights), _CHUNK_BYTES)]
        if self._shelf is not None:
            place, pieces = await self._shelf.put(tenant, number, weights, about), []
        else:
            chunks = zip(TenantKeys(tenant).chunks(mark, len(pieces)), pieces, strict=True)
            await self._connection.batch([["SET", chunk, piece, "PX", _STAGED_MS] for chunk, piece in chunks])
        return {
            "size_bytes": len(weights),
            "mark": mark,
            "num_chunks": len(pieces),
            "digest": hashlib.sha256(weights).hexdigest(),
            "place": place,
        }

    async def read(self, tenant: str, generation: Generation) -> bytes | None:
        """A generation's bytes; None where they are not those that were written."""
        if generation.place and self._shelf is None:
            raise StoreUnavailable(
                f"generation {generation.number} lies outside the store: set HOPE_GENERATIONS_URL as it was then",
                retry_after_s=RETRY_AFTER_S,
            )
        if generation.place and self._shelf is not None:
            weights = await self._shelf.get(generation.place)
        else:
            chunks = TenantKeys(tenant).chunks(generation.mark, generation.num_chunks)
            pieces = await self._connection.batch([["GET", chunk] for chunk in chunks])
            weights = b"".join(piece or b"" for piece in pieces)
        return weights if hashlib.sha256(weights).hexdigest() == generation.digest else None

    async def tidy(self, tenant: str, unwanted: Sequence[Generation], kept: Collection[Generation]) -> None:
        """Takes away the files of generations that are no more, and what was left behind; a shelf may be away."""
        if self._shelf is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._shelf.remove([old.place for old in unwanted if old.place])
                await self._shelf.sweep(tenant, [one.place for one in kept])

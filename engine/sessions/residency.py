"""Memories kept in this process between turns: least recently used, within a byte budget.

A kept memory counts only while it is the session's head. Knows no store and no tensors: a memory is any value
with a size.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.core import Session

MemoryT = TypeVar("MemoryT")


class Residency(Generic[MemoryT]):
    """An LRU of memories. Not thread-safe: it belongs to the event loop.

    Args:
        budget_bytes: the sizes of all kept memories stay within this.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._residents: OrderedDict[tuple[str, str], _Resident[MemoryT]] = OrderedDict()
        self._size_bytes = 0

    def get(self, tenant: str, session: Session) -> MemoryT | None:
        """The session's memory, if what is kept is exactly its head; what is not is dropped."""
        key = (tenant, session.id)
        resident = self._residents.get(key)
        if resident is None:
            return None
        if resident.head != _head(session):
            self.drop(tenant, session.id)
            return None
        self._residents.move_to_end(key)
        return resident.memory

    def put(self, tenant: str, session: Session, memory: MemoryT, size_bytes: int) -> None:
        """Keeps a memory as the session's head; the oldest make room, and one too large is not kept."""
        self.drop(tenant, session.id)
        if size_bytes > self._budget_bytes:
            return
        self._residents[tenant, session.id] = _Resident(_head(session), memory, size_bytes)
        self._size_bytes += size_bytes
        while self._size_bytes > self._budget_bytes:
            _, evicted = self._residents.popitem(last=False)
            self._size_bytes -= evicted.size_bytes

    def drop(self, tenant: str, session_id: str) -> None:
        """Forgets a session's memory, if it is kept."""
        resident = self._residents.pop((tenant, session_id), None)
        if resident is not None:
            self._size_bytes -= resident.size_bytes

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def size_bytes(self) -> int:
        """Bytes of all kept memories."""
        return self._size_bytes


@dataclass(frozen=True)
class _Resident(Generic[MemoryT]):
    head: tuple[str, str, int]
    memory: MemoryT
    size_bytes: int


def _head(session: Session) -> tuple[str, str, int]:
    # The version alone is not enough: a session deleted and made anew under its id counts from zero again, and a store
    # that lost its last writes, as a failover may, gives their numbers to others.
    return session.created_at, session.updated_at, session.version

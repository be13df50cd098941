"""Every tenant that has sessions is found, whatever it is called, and nobody else."""

from __future__ import annotations

from engine.sessions.store import SessionStore
from tests.engine.sessions.samples import make_session

STRANGE = ("acme", "a:b", "{x}", "sessions", "Zürich *", "a}:sessions")


async def test_every_tenant_with_sessions_is_found_by_its_name(store: SessionStore) -> None:
    assert await store.tenants.all() == {}
    for number, tenant in enumerate(STRANGE):
        for name in range(number + 1):
            await store.create(tenant, make_session(f"s-{name}"))
    await store.enqueue_consolidation("stranger", "s-1")
    await store.generations.open("watcher")
    assert await store.tenants.all() == {tenant: number + 1 for number, tenant in enumerate(STRANGE)}


async def test_a_tenant_whose_last_session_was_deleted_has_none(store: SessionStore) -> None:
    await store.create("acme", make_session("s-1"))
    await store.delete("acme", "s-1")
    assert await store.tenants.all() == {}

"""The client's types and routes against the server's own description of them: neither has what the other lacks."""

from __future__ import annotations

import re
import uuid
from typing import Any

import hope_client as ours
import httpx2
import pytest
from hope_client import AsyncHopeClient, HopeRequestError

from tests.clients.python.cutting import cutting

# The client's type -> the server's.
TYPES = {
    "Session": "Session",
    "SessionDeleted": "SessionDeleted",
    "Turn": "Turn",
    "Usage": "Usage",
    "MemoryReport": "MemoryReport",
    "LevelReport": "LevelReport",
    "Timing": "Timing",
    "Memory": "MemoryView",
    "LevelView": "LevelView",
    "Surprise": "SurprisePoint",
    "Version": "VersionView",
    "Consolidation": "Consolidation",
    "GateCheck": "GateCheck",
    "Generation": "GenerationView",
    "SetAside": "QuarantineView",
}
# Set by the client itself, or beside the options.
NO_OPTIONS = {"message", "stream"}
ROOMS = ("/v1/sessions", "/v1/consolidations", "/v1/generations", "/v1/quarantine")


@pytest.fixture(scope="module")
def description(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{url}/openapi.json").json()
    return found


@pytest.mark.parametrize(("name", "theirs"), TYPES.items())
def test_a_type_has_the_fields_of_the_wire(name: str, theirs: str, description: dict[str, Any]) -> None:
    fields = set(description["components"]["schemas"][theirs]["properties"])
    assert set(getattr(ours, name).__annotations__) == fields


def test_a_turn_takes_every_option(description: dict[str, Any]) -> None:
    fields = set(description["components"]["schemas"]["TurnCreate"]["properties"])
    assert set(ours.TurnOptions.__annotations__) == fields - NO_OPTIONS


async def test_every_route_has_its_method(url: str, description: dict[str, Any]) -> None:
    async with cutting(url) as proxy, AsyncHopeClient(proxy.url) as client:
        await _call_everything(client)
    described = {
        (method.upper(), path)
        for path, methods in description["paths"].items()
        if path.startswith(ROOMS)
        for method in methods
    }
    called = {
        (method, path)
        for method, path in described
        for asked in proxy.asked
        if re.fullmatch(rf"{method} {re.sub('{[a-z_]+}', '[^/?]+', path)}([?].*)?", asked)
    }
    assert described - called == set()


async def _call_everything(client: AsyncHopeClient) -> None:
    """Each method once, with results that show it did what it says."""
    session = await client.create_session(f"all-{uuid.uuid4().hex}", metadata={"of": "tests"})
    assert (await client.update_session(session, metadata={"of": "them"}))["metadata"] == {"of": "them"}
    turn = await client.turn(session, "hello", max_tokens=2, temperature=0)
    other = await client.turn(session, "again", max_tokens=2, temperature=0)
    assert [one["id"] async for one in client.transcript(session, page_size=1)] == [turn["id"], other["id"]]
    assert session["id"] in [one["id"] async for one in client.sessions(page_size=1)]
    assert (await client.memory(session))["version"] == 2
    assert [one["version"] for one in await client.versions(session)] == [2, 1]
    fork = await client.fork(session, version=1)
    assert (await client.rollback(session, 1))["num_turns"] == fork["num_turns"] == 1
    copy = await client.import_session(await client.export_session(fork))
    for one in (session, fork, copy):
        assert (await client.delete_session(one))["deleted"]
    with pytest.raises(HopeRequestError) as gone:
        await client.session(session)
    assert (gone.value.status, gone.value.code) == (404, "not_found")
    consolidation = await client.consolidate(wait=True)
    assert consolidation["status"] == "empty"
    assert await client.quarantine() == []
    with pytest.raises(HopeRequestError, match="no session"):
        await client.let_out("nobody")
    assert (await client.consolidations())[0]["id"] == consolidation["id"]
    assert (await client.consolidation(consolidation["id"]))["status"] == "empty"
    assert [one["generation"] for one in await client.generations()] == [0]
    assert (await client.activate_generation(0))["active"]

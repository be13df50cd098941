"""Clocks that are wrong or jump: leases and idempotency keys go by the store's clock, and fences by none."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.faults.fleet import Fleet
from tests.tiny import write_tiny_checkpoint

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed; on Debian: faketime")
DAY_S = 86_400
LONG: dict[str, Any] = {"max_tokens": 150, "temperature": 2.0, "seed": 1}


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that says by how much the store's clock is wrong."""
    file = tmp_path_factory.mktemp("clock") / "faketime"
    file.write_text("+0")
    return file


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, jump: Path) -> Iterator[Fleet]:
    """A replica two days ahead and one two days behind, and a store whose clock can jump."""
    faked = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(
        folder,
        write_tiny_checkpoint(folder / "checkpoint"),
        num_replicas=2,
        with_nginx=False,
        program="tests.faults.wrong_clock",
        environments=[{"CLOCK_OFFSET_S": str(2 * DAY_S)}, {"CLOCK_OFFSET_S": str(-2 * DAY_S)}],
        store_environment={**faked, "FAKETIME_TIMESTAMP_FILE": str(jump), "FAKETIME_NO_CACHE": "1"},
    ) as fleet:
        yield fleet


@pytest.fixture
def session(fleet: Fleet, jump: Path) -> Iterator[str]:
    name = f"s-{secrets.token_hex(6)}"
    assert fleet.http.post("/v1/sessions", json={"id": name}).status_code == 201
    yield name
    jump.write_text("+0")


def _until_it_is_held(fleet: Fleet, session: str) -> None:
    """Waits until a turn has the session's lease."""
    deadline = time.monotonic() + 20
    with redis.Redis(port=fleet.store.port) as client:
        while not client.keys(f"*:{session}*:lease"):
            assert time.monotonic() < deadline, "no turn took the lease"
            time.sleep(0.01)


def _store_is_off_by_s(fleet: Fleet) -> float:
    with redis.Redis(port=fleet.store.port) as client:
        seconds, _ = client.time()
    return float(seconds) - time.time()


def test_replicas_whose_clocks_differ_by_days_share_sessions_and_keys(fleet: Fleet, session: str) -> None:
    turns = [fleet.say(session, f"{number}", number=number % 2, key=f"k-{number}").json() for number in range(6)]
    days = {turn["created_at"][:10] for turn in turns}
    assert len(days) == 2, "the replicas' clocks are wrong indeed"
    for number, turn in enumerate(turns):
        again = fleet.say(session, f"{number}", number=(number + 1) % 2, key=f"k-{number}").json()
        assert again["id"] == turn["id"]
    fleet.check(session, turns)


def test_a_lease_of_the_dead_ends_by_the_stores_clock(fleet: Fleet, session: str) -> None:
    key, ahead = secrets.token_hex(8), fleet.replicas[0]
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(fleet.say, session, "Long.", key=key, **LONG)
        _until_it_is_held(fleet, session)
        ahead.kill()
        asked.exception()
    begun = time.monotonic()
    turn = fleet.say(session, "Long.", number=1, key=key, **LONG)
    assert turn.status_code == 200, turn.text
    assert time.monotonic() - begun < 30
    ahead.begin()
    ahead.wait()
    fleet.check(session, [turn.json()])


@pytest.mark.parametrize("offset_s", [3600, -3600])
def test_the_stores_clock_jumps_in_the_middle_of_a_turn(fleet: Fleet, session: str, jump: Path, offset_s: int) -> None:
    turns = [fleet.say(session, "Before.").json()]
    key = secrets.token_hex(8)
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(fleet.say, session, "During.", key=key, **LONG)
        _until_it_is_held(fleet, session)
        jump.write_text(f"{offset_s:+}")
        answer = asked.result()
    assert abs(_store_is_off_by_s(fleet) - offset_s) < 5, "it jumped indeed"
    if answer.status_code != 200:
        # Its lease ran out an hour early: the fence refuses the commit.
        assert answer.json()["error"]["code"] == "lease_lost"
    # With its key the turn happens, once, on either replica.
    turns.append(fleet.say(session, "During.", number=1, key=key, **LONG).json())
    assert fleet.say(session, "During.", number=0, key=key, **LONG).json()["id"] == turns[-1]["id"]
    fleet.check(session, turns)

"""The store killed, stopped, full, slow, out of disk, damaged: what was answered stays, and nothing happens twice."""

from __future__ import annotations

import resource
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import redis

from tests.faults.fleet import Fleet
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    with Fleet(folder, checkpoint, num_replicas=2, with_nginx=False) as fleet:
        yield fleet


@pytest.fixture
def session(fleet: Fleet) -> str:
    name = f"s-{secrets.token_hex(6)}"
    _until(lambda: fleet.http.post("/v1/sessions", json={"id": name}).status_code == 201)
    return name


@pytest.fixture
def client(fleet: Fleet) -> Iterator[redis.Redis]:
    with redis.Redis(port=fleet.store.port) as client:
        yield client


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.1)


def _insist(fleet: Fleet, session: str, number: int) -> dict[str, Any]:
    """A turn with a key, repeated as clients do until it is answered; the replicas take turns."""
    key, deadline, attempt = secrets.token_hex(8), time.monotonic() + 90, number
    while True:
        answer = fleet.say(session, f"Number {number}.", number=attempt % 2, key=key, timeout_s=20)
        if answer.status_code == 200:
            turn: dict[str, Any] = answer.json()
            return turn
        assert answer.status_code in (500, 503, 504), answer.text
        assert answer.json()["error"]["code"] in ("store_unavailable", "commit_unknown", "lease_lost", "overloaded")
        assert time.monotonic() < deadline, answer.text
        attempt += 1
        time.sleep(0.2)


def _until_longer(turns: list[dict[str, Any]], length: int) -> None:
    _until(lambda: len(turns) > length)


@contextmanager
def _talking(fleet: Fleet, session: str) -> Iterator[list[dict[str, Any]]]:
    """One turn after the other for as long as the block lasts, and then what was answered."""
    turns: list[dict[str, Any]] = []
    ended = threading.Event()

    def talk() -> None:
        while not ended.is_set():
            turns.append(_insist(fleet, session, len(turns)))

    with ThreadPoolExecutor() as threads:
        talk_of_another = threads.submit(talk)
        try:
            _until(lambda: turns)
            yield turns
        finally:
            ended.set()
            talk_of_another.result()


def test_killed_and_started_again(fleet: Fleet, session: str) -> None:
    with _talking(fleet, session) as turns:
        for _ in range(2):
            before = len(turns)
            fleet.store.kill()
            _until(lambda: httpx2.get(f"{fleet.url}/readyz").status_code == 503)
            assert httpx2.get(f"{fleet.url}/livez").status_code == 200, "a store that is gone kills no server"
            fleet.store.begin()
            fleet.store.wait()
            _until_longer(turns, before + 1)
    fleet.check(session, turns)
    assert [turn["index"] for turn in turns] == list(range(len(turns)))


def test_stopped_and_continued(fleet: Fleet, session: str) -> None:
    with _talking(fleet, session) as turns:
        for stopped_s in (0.5, 8.0):  # within what a client waits for an answer, and beyond that and the lease
            before = len(turns)
            fleet.store.send(signal.SIGSTOP)
            time.sleep(stopped_s)
            fleet.store.send(signal.SIGCONT)
            _until_longer(turns, before + 1)
    fleet.check(session, turns)


def test_slow(fleet: Fleet, session: str, client: redis.Redis) -> None:
    with _talking(fleet, session) as turns:
        before = len(turns)
        while len(turns) < before + 3:
            client.client_pause(100)
            time.sleep(0.15)
    client.client_unpause()
    fleet.check(session, turns)


def _refused_then_taken(fleet: Fleet, session: str, mend: Callable[[], object]) -> None:
    """A store that cannot write refuses turns safely and still reads; once mended, the same turn is taken."""
    key = secrets.token_hex(8)
    before = fleet.transcript(session)
    refused = [fleet.say(session, "Refused.", number=number, key=key) for number in (0, 1)]
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable"), answer.text
        assert answer.headers["retry-after"]
    assert fleet.transcript(session) == before
    read = fleet.say(session, "What do you know?", learn=False)
    assert read.status_code == 200, read.text
    mend()
    _until(lambda: fleet.say(session, "Refused.", key=key).status_code == 200)
    fleet.check(session, [*before, fleet.say(session, "Refused.", number=1, key=key).json()])
    assert len(fleet.transcript(session)) == len(before) + 1


def test_memory_full(fleet: Fleet, session: str, client: redis.Redis) -> None:
    _insist(fleet, session, 0)
    client.config_set("maxmemory", 1)
    try:
        _refused_then_taken(fleet, session, lambda: client.config_set("maxmemory", 0))
    finally:
        client.config_set("maxmemory", 0)


def test_disk_full(fleet: Fleet, session: str) -> None:
    _insist(fleet, session, 0)
    store, unlimited = fleet.store.pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(store, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        # What fills the disk is accepted yet; from the next flush on nothing is.
        filling = fleet.say(session, "It fills up.", key=secrets.token_hex(8))
        assert filling.status_code in (200, 503)
        _until(lambda: fleet.say(session, "Full?", key=secrets.token_hex(8)).status_code == 503)
        _refused_then_taken(fleet, session, lambda: resource.prlimit(store, resource.RLIMIT_FSIZE, unlimited))
    finally:
        resource.prlimit(store, resource.RLIMIT_FSIZE, unlimited)
    # What was answered is on the disk: a store that dies now has it still.
    before = fleet.transcript(session)
    time.sleep(1.5)
    fleet.store.kill()
    fleet.store.begin()
    fleet.store.wait()
    _until(lambda: httpx2.get(f"{fleet.url}/readyz").status_code == 200)
    assert fleet.transcript(session) == before


def test_a_damaged_memory_is_never_served_and_the_version_before_it_is(
    fleet: Fleet, session: str, client: redis.Redis
) -> None:
    turns = [fleet.say(session, f"Number {number}.").json() for number in range(3)]
    (chunk,) = client.keys(f"*:{session}*:memory:3.*")
    middle = client.strlen(chunk) // 2
    client.setbit(chunk, 8 * middle, 1 - int(client.getbit(chunk, 8 * middle)))
    # The replica that has not got it in memory has to load it.
    for asked in ({"learn": False}, {}, {"key": "key"}):
        answer = fleet.say(session, "What do you know?", number=1, **asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (500, "corrupt_memory")
        assert "roll back to version 2" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
    for path in ("fork", "export"):
        method = fleet.http.post if path == "fork" else fleet.http.get
        answer = method(f"{fleet.replica_url(1)}/v1/sessions/{session}/{path}")
        assert answer.json()["error"]["code"] == "corrupt_memory"
    rolled = fleet.http.post(f"{fleet.replica_url(1)}/v1/sessions/{session}/rollback", json={"version": 2})
    assert (rolled.status_code, rolled.json()["version"], rolled.json()["num_turns"]) == (200, 4, 2), rolled.text
    for number in (0, 1):
        assert fleet.say(session, "And on.", number=number).status_code == 200
    assert [turn["id"] for turn in fleet.transcript(session)][:2] == [turn["id"] for turn in turns[:2]]
    assert fleet.http.get(f"/v1/sessions/{session}").json()["num_turns"] == 4

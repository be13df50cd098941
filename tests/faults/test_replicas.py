"""Three replicas behind nginx, as deploy/ has them: any of them serves any session, and one that dies is not missed."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from hope_client import HopeClient, HopeRequestError

from tests.faults.fleet import LEASE_TTL_S, NGINX, WITHOUT_NGINX, Fleet, Process
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.skipif(NGINX is None, reason=WITHOUT_NGINX)

# Drawn this hot, it does not end at once.
LONG: dict[str, Any] = {"message": "My dog is called Rex.", "max_tokens": 150, "temperature": 2.0, "seed": 1}
SHORT: dict[str, Any] = {"message": "My dog is called Rex.", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, write_tiny_checkpoint(folder / "checkpoint", chunk_memory=8)) as fleet:
        yield fleet


@pytest.fixture
def session(fleet: Fleet) -> str:
    for replica in fleet.replicas:
        if not replica.alive:
            replica.begin()
            replica.wait()
    name = f"s-{secrets.token_hex(6)}"
    assert fleet.http.post("/v1/sessions", json={"id": name}).status_code == 201
    return name


def _say(fleet: Fleet, session: str, url: str = "", key: str = "", **more: Any) -> httpx2.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return fleet.http.post(f"{url}/v1/sessions/{session}/turns", json={**SHORT, **more}, headers=headers)


def test_any_replica_serves_any_session(fleet: Fleet, session: str) -> None:
    for number in (0, 1, 2, 1, 0):
        assert _say(fleet, session, fleet.replica_url(number)).status_code == 200
    assert _say(fleet, session).json()["memory"]["version"] == 6
    for number in range(3):
        found = fleet.http.get(f"{fleet.replica_url(number)}/v1/sessions/{session}").json()
        assert (found["version"], found["num_turns"]) == (6, 6)


def test_a_session_stays_with_its_replica_and_sessions_spread(fleet: Fleet) -> None:
    serving: dict[str, Process] = {}
    for _ in range(12):
        name = f"s-{secrets.token_hex(6)}"
        fleet.http.post("/v1/sessions", json={"id": name})
        serving[name] = fleet.serving(name)
    assert len({one.name for one in serving.values()}) == 3
    assert all(fleet.serving(name) is one for name, one in serving.items())
    # The same session in a header goes where its path goes.
    for name, one in serving.items():
        mark = secrets.token_hex(8)
        headers = {"X-Session-ID": name, "X-Request-ID": mark}
        body = {"model": "hope", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}
        assert fleet.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        assert one.logs(mark)


def test_tokens_pass_as_they_come(fleet: Fleet, session: str) -> None:
    begun = time.monotonic()
    arrived: list[float] = []
    body = {**LONG, "stream": True}
    with fleet.http.stream("POST", f"/v1/sessions/{session}/turns", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if "turn.token" in line:
                arrived.append(time.monotonic())
    took = time.monotonic() - begun
    assert len(arrived) > 20
    assert arrived[0] - begun < took / 2, "the first token did not wait for the last"
    with HopeClient(fleet.url) as client, client.open(session) as conversation:
        arrived = [time.monotonic() for event in conversation.turn(**LONG) if event["type"] == "turn.token"]
        assert len(arrived) > 20
        assert arrived[-1] - arrived[0] > 0.02, "they came one by one"


def _killed_in_mid_turn(fleet: Fleet, session: str, key: str) -> Process:
    """Streams a turn, kills its replica at the first token, and shows that the stream broke off."""
    victim = fleet.serving(session)
    said = []
    body = {**LONG, "stream": True}
    headers = {"Idempotency-Key": key}
    try:
        with fleet.http.stream("POST", f"/v1/sessions/{session}/turns", json=body, headers=headers) as answer:
            for line in answer.iter_lines():
                said.append(line)
                if "turn.token" in line:
                    victim.kill()
    except httpx2.TransportError:
        said.append("broke off")
    assert not any("turn.completed" in line for line in said)
    return victim


def test_law_7_a_turn_whose_replica_is_killed_happens_once_elsewhere_within_the_lease(
    fleet: Fleet, session: str
) -> None:
    assert _say(fleet, session).status_code == 200
    key = secrets.token_hex(8)
    victim = _killed_in_mid_turn(fleet, session, key)
    begun, body = time.monotonic(), {**LONG, "stream": True}
    with fleet.http.stream(
        "POST", f"/v1/sessions/{session}/turns", json=body, headers={"Idempotency-Key": key}
    ) as answer:
        lines = answer.iter_lines()
        assert "turn.created" in next(lines)
        assert time.monotonic() - begun < LEASE_TTL_S + 2, "the lease of the dead is waited for, and no more"
        completed = next(json.loads(line[6:]) for line in lines if "turn.completed" in line)
    assert completed["turn"]["memory"]["version"] == 2
    assert not victim.alive
    # Once more with the key, on each replica that is left: the same turn.
    for replica in (one for one in fleet.replicas if one.alive):
        repeated = fleet.http.post(
            f"http://127.0.0.1:{replica.port}/v1/sessions/{session}/turns", json=body, headers={"Idempotency-Key": key}
        )
        assert completed["turn"]["id"] in repeated.text
    turns = fleet.transcript(session)
    assert [turn["index"] for turn in turns] == [0, 1]
    assert fleet.http.get(f"/v1/sessions/{session}").json()["version"] == 2


def test_law_7_nginx_itself_takes_a_turn_with_a_key_elsewhere_and_one_without_to_nobody(
    fleet: Fleet, session: str
) -> None:
    for key in ("", secrets.token_hex(8)):
        victim = fleet.serving(session)
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(_say, fleet, session, key=key, **LONG)
            _until_it_runs(victim)
            victim.kill()
            answer = asked.result()
        if key:
            assert answer.status_code == 200, answer.text
            assert answer.json()["memory"]["version"] == 1
        else:
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "commit_unknown"
            assert answer.headers["x-should-retry"] == "false"
        victim.begin()
        victim.wait()
    assert len(fleet.transcript(session)) == 1


def _until_it_runs(replica: Process) -> None:
    """Waits until the replica reports a running turn."""
    deadline = time.monotonic() + 10
    while "hope_requests_running 1.0" not in httpx2.get(f"http://127.0.0.1:{replica.port}/metrics").text:
        assert time.monotonic() < deadline, "no turn ran"


def test_the_client_is_told_of_a_dead_replica_and_goes_on_with_another(fleet: Fleet, session: str) -> None:
    victim = fleet.serving(session)
    key = secrets.token_hex(8)
    with HopeClient(fleet.url, max_attempts=1) as client, pytest.raises(HopeRequestError):
        _talk_until(client, session, key, victim.kill)
    with HopeClient(fleet.url) as client:
        with client.open(session) as conversation:
            *_, last = conversation.turn(**LONG, idempotency_key=key)
        assert last["type"] == "turn.completed"
        assert last["turn"]["memory"]["version"] == 1
        assert client.session(session)["num_turns"] == 1


def _talk_until(client: HopeClient, session: str, key: str, first_token: Callable[[], None]) -> None:
    with client.open(session) as conversation:
        for event in conversation.turn(**LONG, idempotency_key=key):
            if event["type"] == "turn.token":
                first_token()

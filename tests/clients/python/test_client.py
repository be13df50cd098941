"""The Python client against a real server: sessions, turns that stream, cancel, and refusals in its words."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from hope_client import HopeClient, HopeRequestError

from tests.clients.python.hearing import completed, heard


@pytest.fixture
def client(url: str) -> Iterator[HopeClient]:
    with HopeClient(url) as client:
        yield client


@pytest.fixture
def session_id(client: HopeClient) -> str:
    return str(client.create_session(uuid.uuid4().hex)["id"])


def test_turns_stream_and_are_learned(client: HopeClient, session_id: str) -> None:
    with client.open(session_id) as conversation:
        assert conversation.session["version"] == 0
        for version in (1, 2):
            events = list(conversation.turn("hello", max_tokens=12, temperature=0))
            assert events[0]["type"] == "turn.created"
            assert heard(events) == completed(events)["reply"]
            assert completed(events)["memory"]["version"] == version
        assert list(conversation.rest()) == [], "no turn runs"
    assert client.session(session_id)["version"] == 2
    assert client.memory(session_id)["version"] == 2


def test_cancel_ends_the_turn_without_a_trace(client: HopeClient, session_id: str) -> None:
    with client.open(session_id) as conversation:
        events = conversation.turn("hello", max_tokens=1024, temperature=0)
        assert next(events)["type"] == "turn.created"
        conversation.cancel()
        assert list(events)[-1]["type"] == "turn.cancelled"
    assert client.session(session_id)["version"] == 0


def test_a_session_goes_back_is_forked_and_carried_elsewhere(client: HopeClient, session_id: str) -> None:
    with client.open(session_id) as conversation:
        for message in ("hello", "again"):
            list(conversation.turn(message, max_tokens=3, temperature=0))
    assert [one["version"] for one in client.versions(session_id)] == [2, 1]
    other, file = f"{session_id}-2", client.export_session(session_id)
    assert client.fork(session_id, version=1, new_id=other)["num_turns"] == 1
    assert client.rollback(session_id, 1)["version"] == 3
    copy = client.import_session(file)["id"]
    assert client.session(copy)["version"] == 2
    assert client.import_session(file, f"{session_id}-3")["id"] == f"{session_id}-3"
    for call in (lambda: client.rollback(session_id, 99), lambda: client.export_session("nobody")):
        with pytest.raises(HopeRequestError) as refused:
            call()
        assert refused.value.code == "not_found"


def test_refused_turn_raises_and_the_conversation_goes_on(client: HopeClient, session_id: str) -> None:
    with client.open(session_id) as conversation:
        with pytest.raises(HopeRequestError, match="temperature") as refused:
            list(conversation.turn("hello", temperature=9))
        assert refused.value.code == "invalid_request"
        assert list(conversation.turn("hello", max_tokens=1))[-1]["type"] == "turn.completed"


def test_same_idempotency_key_learns_once(client: HopeClient, session_id: str) -> None:
    with client.open(session_id) as conversation:
        first, again = (
            completed(list(conversation.turn("hello", max_tokens=2, idempotency_key="once"))) for _ in range(2)
        )
    assert first["id"] == again["id"]
    assert client.session(session_id)["version"] == 1


def test_refusals_carry_the_contracts_code(client: HopeClient, session_id: str) -> None:
    with pytest.raises(HopeRequestError) as taken:
        client.create_session(session_id)
    assert taken.value.code == "conflict"
    client.delete_session(session_id)
    with pytest.raises(HopeRequestError) as gone:
        client.session(session_id)
    assert gone.value.code == "not_found"
    with pytest.raises(HopeRequestError) as closed, client.open(session_id):
        pass
    assert closed.value.code == "not_found"


def test_nobody_there_is_said_plainly() -> None:
    with HopeClient("http://127.0.0.1:9", timeout_s=2) as client:
        with pytest.raises(HopeRequestError, match=r"No server answers at http://127\.0\.0\.1:9"):
            client.session("s")
        with pytest.raises(HopeRequestError, match="No server answers"), client.open("s"):
            pass

"""The blocking face has what the awaiting one has, and does not need its thread to be told."""

from __future__ import annotations

import inspect
import threading
import uuid

import pytest
from hope_client import AsyncConversation, AsyncHopeClient, Conversation, HopeClient, NotFound

FACES = [(AsyncHopeClient, HopeClient), (AsyncConversation, Conversation)]


def public(kind: type) -> dict[str, list[inspect.Parameter]]:
    """Methods by name, with their parameters."""
    return {
        name: list(inspect.signature(method).parameters.values())
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(("awaiting", "waiting"), FACES)
def test_both_faces_have_the_same_methods(awaiting: type, waiting: type) -> None:
    assert public(awaiting) == public(waiting)
    assert len(public(waiting)) > 4


def test_both_faces_begin_alike() -> None:
    assert inspect.signature(AsyncHopeClient) == inspect.signature(HopeClient)


def test_iterators_wait_and_end(url: str) -> None:
    with HopeClient(url) as client:
        session = client.create_session(uuid.uuid4().hex)
        events = list(client.turn_events(session, "hello", max_tokens=4, temperature=0))
        assert [event["type"] for event in (events[0], events[-1])] == ["turn.created", "turn.completed"]
        assert [turn["index"] for turn in client.transcript(session)] == [0]
        leaving = client.turn_events(session, "hello", max_tokens=1024)
        assert next(leaving)["type"] == "turn.created"
        leaving.close()  # type: ignore[attr-defined]  # a generator
        assert client.turn(session, "hello", max_tokens=1)["index"] == 1, "leaving a stream cancels its turn"
        with pytest.raises(NotFound), client.stream("nobody"):
            pass
    client.close()
    assert "hope-client" not in [thread.name for thread in threading.enumerate()]


def test_threads_share_a_client(url: str) -> None:
    with HopeClient(url) as client:
        names = [uuid.uuid4().hex for _ in range(4)]

        def talk(name: str) -> None:
            client.create_session(name)
            with client.stream(name) as conversation:
                list(conversation.turn("hello", max_tokens=4))

        threads = [threading.Thread(target=talk, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [client.session(name)["version"] for name in names] == [1] * 4

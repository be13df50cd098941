"""A websocket that is sent anything in any order: every frame is answered as the contract says, and no turn is lost.

What was answered is held against the transcript, and each version is one learned turn's.
"""

from __future__ import annotations

import json
import socket as sockets
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given, seed
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.fuzz.target import MAX_BODY_BYTES, SEED, examples, headers_of

HEADERS = headers_of("frames")
ENDS = ("turn.completed", "turn.cancelled")
TIMEOUT_S = 60.0
SCRIPTS_PER_SESSION = 50
BROKEN_FRAMES = {
    "a reserved opcode": b"\x83\x80\x00\x00\x00\x00",
    "no mask": b"\x81\x02hi",
    "text that is no UTF-8": b"\x81\x82\x00\x00\x00\x00\xff\xff",
    "a continuation of nothing": b"\x80\x80\x00\x00\x00\x00",
    "half a frame": b"\x81\xfe\x10",
}

turns = st.fixed_dictionaries(
    {"learn": st.booleans(), "max_tokens": st.integers(0, 6), "temperature": st.sampled_from([0.0, 1.0])},
    optional={"seed": st.integers(-(2**63), 2**63 - 1), "stop": st.lists(st.text("abc", min_size=1), max_size=2)},
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
bad_frames = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).filter(lambda text: not _is_frame(text)),
    json_values.filter(lambda value: not _is_frame(json.dumps(value))).map(json.dumps),
    st.sampled_from(["[" * 30_000, "{", '{"type": "turn.create"}', '{"type": "ping", "x": 1}', "9" * 5000]),
    st.builds(
        lambda name, value: json.dumps({"type": "turn.create", "turn": {"message": "a", name: value}}),
        st.sampled_from(["n", "message", "max_tokens", "temperature", "colour"]),
        st.sampled_from([[], {}, -1, -0.5, True]),
    ),
)
steps = st.one_of(
    st.tuples(st.just("turn"), turns),
    st.tuples(st.just("wait"), st.none()),
    st.tuples(st.sampled_from(["cancel", "ping"]), st.none()),
    st.tuples(st.just("bad"), bad_frames),
)
endings = st.one_of(
    st.sampled_from(["close", "vanish", "too large"]), st.sampled_from(sorted(BROKEN_FRAMES)), st.just("stay")
)


def _is_frame(text: str) -> bool:
    """Whether it could be one that is obeyed."""
    return '"type"' in text


class Talk:
    """One socket, what was asked on it and what came back."""

    def __init__(self, connection: ClientConnection, number: int) -> None:
        self._connection, self._number = connection, number
        self.sent: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.asked: dict[str, bool] = {}
        self.completed: list[dict[str, Any]] = []
        self._tokens: list[str] = []

    def do(self, kind: str, value: Any) -> None:
        """One step of a script."""
        self.sent[kind] += 1
        if kind == "turn":
            message = f"{self._number}: word {len(self.asked)}"
            self.asked[message] = value["learn"]
            self._send({"type": "turn.create", "turn": {"message": message, **value}})
        elif kind == "wait":
            self.settle()
        elif kind == "bad":
            self._connection.send(value)
        else:
            self._send({"type": "ping" if kind == "ping" else "turn.cancel"})

    def settle(self) -> None:
        """Until every turn has ended and every ping was answered."""
        self._send({"type": "ping"})
        self.sent["ping"] += 1
        while self.seen["pong"] < self.sent["ping"] or self.seen["turn.created"] > self.ended or self._unanswered:
            self._hear()
        assert self.seen["error"] == self.sent["bad"] + self.seen["conflict"]

    @property
    def ended(self) -> int:
        """How many turns have begun and ended."""
        return self.seen["turn.completed"] + self.seen["turn.cancelled"] - self.seen["cancelled unborn"]

    @property
    def _unanswered(self) -> bool:
        return self.sent["turn"] > self.seen["turn.created"] + self.seen["cancelled unborn"] + self.seen["conflict"]

    def _hear(self) -> None:
        event = json.loads(self._connection.recv(TIMEOUT_S))
        kind = event["type"]
        self.seen[kind] += 1
        if kind == "turn.created":
            self._tokens = []
        elif kind == "turn.token":
            assert event["index"] == len(self._tokens)
            self._tokens.append(event["text"])
        elif kind == "turn.completed":
            assert event["turn"]["reply"] == "".join(self._tokens)
            self.completed.append(event["turn"])
        elif kind == "turn.cancelled":
            self.seen["cancelled unborn"] += event["turn_id"] is None
        elif kind == "error":
            assert set(event["error"]) == {"message", "type", "code", "param"}
            assert event["error"]["code"] in ("invalid_request", "unsupported", "conflict"), event
            self.seen["conflict"] += event["error"]["code"] == "conflict"
        else:
            assert kind == "pong"

    def _send(self, frame: dict[str, Any]) -> None:
        self._connection.send(json.dumps(frame))


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx2.Client]:
    """Requests of the tenant whose sockets these are."""
    with httpx2.Client(base_url=url, headers=HEADERS, timeout=TIMEOUT_S) as client:
        yield client


def test_any_frames_in_any_order(url: str, http: httpx2.Client, healthy: None) -> None:
    sessions = [_new_session(http)]
    talks: list[Talk] = []
    num_completed: Counter[int] = Counter()

    @seed(SEED)
    @examples(12, 0.1)
    @given(st.lists(steps, max_size=8), endings)
    def fuzz(script: list[tuple[str, Any]], ending: str) -> None:
        with _socket(url, sessions[-1]) as connection:
            assert json.loads(connection.recv(TIMEOUT_S))["type"] == "session.ready"
            talks.append(Talk(connection, len(talks)))
            for kind, value in script:
                talks[-1].do(kind, value)
            _end(connection, ending, talks[-1])
        if len(talks) == SCRIPTS_PER_SESSION:
            _check(http, sessions.pop(), talks)
            num_completed.update(talk.seen["turn.completed"] for talk in talks)
            talks.clear()
            sessions.append(_new_session(http))

    fuzz()
    _check(http, sessions.pop(), talks)
    num_completed.update(talk.seen["turn.completed"] for talk in talks)
    assert max(num_completed) > 0


def test_unknown_session_is_closed_1008(url: str, http: httpx2.Client) -> None:
    with _socket(url, "nobody") as connection:
        assert json.loads(connection.recv(TIMEOUT_S))["error"]["code"] == "not_found"
        assert _close_code(connection) == 1008


def _socket(url: str, session_id: str) -> ClientConnection:
    address = f"ws{url.removeprefix('http')}/v1/sessions/{session_id}/stream"
    return connect(
        address,
        additional_headers=HEADERS,
        subprotocols=["hope.v1"],  # type: ignore[list-item]  # a NewType of str
        compression=None,
        close_timeout=5,
    )


def _end(connection: ClientConnection, ending: str, talk: Talk) -> None:
    if ending == "stay":
        talk.settle()
    elif ending == "vanish":
        connection.socket.shutdown(sockets.SHUT_RDWR)
    elif ending == "too large":
        connection.send("x" * (MAX_BODY_BYTES + 1))
        assert _close_code(connection) == 1009
    elif ending == "half a frame":
        connection.socket.sendall(BROKEN_FRAMES[ending])
        connection.socket.shutdown(sockets.SHUT_RDWR)
    elif ending in BROKEN_FRAMES:
        connection.socket.sendall(BROKEN_FRAMES[ending])
        assert _close_code(connection) in (1002, 1007)


def _close_code(connection: ClientConnection) -> int:
    try:
        while True:
            connection.recv(TIMEOUT_S)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


def _new_session(http: httpx2.Client) -> str:
    session: dict[str, Any] = http.post("/v1/sessions").json()
    return str(session["id"])


def _untimed(turn: dict[str, Any]) -> dict[str, Any]:
    """What was stored cannot tell how long storing took."""
    return {name: value for name, value in turn.items() if name != "timing"}


def _check(http: httpx2.Client, session_id: str, talks: list[Talk]) -> None:
    """Every learned turn that was answered is in the transcript once, nothing is that was not asked to be learned."""
    transcript, more, after = list[dict[str, Any]](), True, dict[str, str]()
    while more:
        page = http.get(f"/v1/sessions/{session_id}/turns", params={"limit": 100, **after}).json()
        transcript += page["data"]
        more, after = page["has_more"], {"after": transcript[-1]["id"]} if transcript else {}
    session = http.get(f"/v1/sessions/{session_id}").json()
    assert session["version"] == session["num_turns"] == len(transcript)
    found = {turn["message"]: turn for turn in transcript}
    assert len(found) == len(transcript)
    asked = {message: learn for talk in talks for message, learn in talk.asked.items()}
    assert all(asked[message] for message in found)
    for turn in (turn for talk in talks for turn in talk.completed):
        assert (turn["message"] in found) == asked[turn["message"]]
        assert not asked[turn["message"]] or _untimed(found[turn["message"]]) == _untimed(turn)

"""What clients do to their sessions, insisting on every turn by its key until it is answered; and the tables of it."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
from hope_client import HopeClient, HopeRequestError

# What a client may be told while servers and stores die; each may be repeated with its key.
PASSING = {
    "closed",
    "commit_unknown",
    "deadline_exceeded",
    "draining",
    "internal_error",
    "lease_lost",
    "overloaded",
    "store_unavailable",
    "unreachable",
}
PAUSE_S = 0.3
TIMEOUT_S = 45.0


@dataclass
class Asked:
    """A turn that was asked for.

    Attributes:
        turn_id: as it was answered; None where no answer came.
    """

    session_id: str
    message: str
    turn_id: str | None = None


@dataclass
class Record:
    """What one client saw."""

    turns: list[Asked] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    longest_s: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Talker:
    """One client and its sessions, which nobody else speaks to; `run` until told to end.

    Args:
        url: of nginx, or of a replica.
        sessions: their ids.
        seed: of what it does.
        ended: no new turn begins after this.
        given_up: nothing is repeated after this.
    """

    def __init__(
        self, url: str, sessions: list[str], seed: str, ended: threading.Event, given_up: threading.Event
    ) -> None:
        self._url, self._sessions, self._chance = url, sessions, random.Random(seed)
        self._ended, self._given_up = ended, given_up
        self._seed = seed
        self._http = httpx2.Client(base_url=url, timeout=TIMEOUT_S)
        self._client = HopeClient(url, timeout_s=TIMEOUT_S)
        self.record = Record()

    def run(self) -> None:
        """Talks."""
        for session in self._sessions:
            self._insist("create", lambda session=session: self._create(session))  # type: ignore[misc]
        kinds: list[tuple[str, Callable[[str, str], Any]]] = [
            *[("websocket turn", self._by_websocket)] * 5,
            *[("JSON turn", self._by_json)] * 2,
            *[("SSE turn", self._by_stream)] * 2,
        ]
        while not self._ended.is_set():
            session = self._chance.choice(self._sessions)
            if self._chance.random() < 0.2:
                self._insist("read", lambda session=session: self._read(session))  # type: ignore[misc]
                continue
            kind, say = self._chance.choice(kinds)
            asked = Asked(session, f"Word {len(self.record.turns)} of {self._seed}.")
            self.record.turns.append(asked)
            turn = self._insist(kind, lambda say=say, asked=asked: say(asked.session_id, asked.message))  # type: ignore[misc]
            if turn is not None:
                asked.turn_id = turn["id"]
                if turn["message"] != asked.message:
                    self.record.violations.append(f"{asked.message!r} was answered with another's turn")
        self._client.close()
        self._http.close()

    def _insist(self, kind: str, act: Callable[[], Any]) -> Any:
        """Does it again until it is answered, or everything is given up."""
        begun = time.monotonic()
        self.record.asked[kind] += 1
        while True:
            try:
                answer = act()
            except HopeRequestError as refusal:
                self.record.refusals[refusal.code] += 1
                if refusal.code not in PASSING:
                    self.record.violations.append(f"{kind}: {refusal.code}: {refusal}")
                    return None
            else:
                self.record.answered[kind] += 1
                took_s = time.monotonic() - begun
                self.record.longest_s[kind] = max(took_s, self.record.longest_s.get(kind, 0.0))
                return answer
            if self._given_up.wait(PAUSE_S):
                return None
            self.record.repeated[kind] += 1

    def _create(self, session: str) -> Any:
        try:
            return self._client.create_session(session)
        except HopeRequestError as refusal:
            if refusal.code != "conflict":
                raise
            return self._client.session(session)  # an earlier attempt made it, and its answer was lost

    def _read(self, session: str) -> Any:
        what = self._chance.randrange(3)
        if what == 0:
            return self._client.memory(session)
        if what == 1:
            return self._client.versions(session)
        with self._client.open(session) as conversation:
            *_, last = conversation.turn("What do you know?", learn=False, max_tokens=2, timeout_s=20)
        return last

    def _by_websocket(self, session: str, message: str) -> Any:
        with self._client.open(session) as conversation:
            *_, last = conversation.turn(message, idempotency_key=_key(message), max_tokens=4, timeout_s=20)
        if last["type"] != "turn.completed":
            raise HopeRequestError("the turn was cancelled", "closed")
        return last["turn"]

    def _by_json(self, session: str, message: str) -> Any:
        return self._post(session, message, stream=False).json()

    def _by_stream(self, session: str, message: str) -> Any:
        lines = self._post(session, message, stream=True).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        for event in events:
            if event["type"] == "error":
                raise HopeRequestError(event["error"]["message"], event["error"]["code"])
        if not events or events[-1]["type"] != "turn.completed":
            raise HopeRequestError("the stream broke off", "closed")
        return events[-1]["turn"]

    def _post(self, session: str, message: str, *, stream: bool) -> httpx2.Response:
        body = {"message": message, "max_tokens": 4, "timeout_s": 20, "stream": stream}
        headers = {"Idempotency-Key": _key(message)}
        try:
            answer = self._http.post(f"/v1/sessions/{session}/turns", json=body, headers=headers)
        except httpx2.TransportError as error:
            raise HopeRequestError(str(error), "unreachable") from error
        if answer.status_code != 200:
            error_object = answer.json()["error"]
            raise HopeRequestError(error_object["message"], error_object["code"])
        return answer


def _key(message: str) -> str:
    return message.replace(" ", "-")


def print_tables(records: Sequence[Record], faults: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """What was asked, what was refused, what was done to the servers, and what was found at the end."""
    print(f"\n{'traffic':18}{'asked':>8}{'answered':>10}{'repeated':>10}{'longest s':>11}")
    for kind in sorted({kind for record in records for kind in record.asked}):
        asked, answered, repeated = (
            sum(getattr(record, name)[kind] for record in records) for name in ("asked", "answered", "repeated")
        )
        longest_s = max(record.longest_s.get(kind, 0.0) for record in records)
        print(f"{kind:18}{asked:8}{answered:10}{repeated:10}{longest_s:11.1f}")
    refusals: Counter[str] = sum((record.refusals for record in records), Counter())
    for title, table in (("refusal", refusals), ("fault", faults), ("at the end", counts)):
        print(f"\n{title:24}{'number':>8}")
        for name, number in table.items():
            print(f"{name:24}{number:8}")

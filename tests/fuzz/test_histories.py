"""Any history of sessions over HTTP, beside a model of what they should be: versions, transcripts, keys and copies.

A reply depends on what the session has learned, on what it is told and on the seed, and on nothing else: whichever
session it is, and whether that came there by turns, a rollback, a fork or a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.fuzz.target import SEED, examples, headers_of

NUM_STEPS = 12
KEPT_VERSIONS = 8

# A message and its seed; what a session has learned is a row of them.
Said = tuple[str, int]
words = st.tuples(st.sampled_from(["I am Ann.", "It rains.", "Wer bist du? 🙂"]), st.integers(0, 2))
replies: dict[tuple[tuple[Said, ...], Said], str] = {}


@dataclass(frozen=True)
class Expected:
    """A session as it should be; `turns` are as they were answered, `kept` are earlier versions, by number."""

    version: int = 0
    learned: tuple[Said, ...] = ()
    turns: tuple[dict[str, Any], ...] = ()
    contribute: bool = False
    metadata: tuple[tuple[str, str], ...] = ()
    kept: dict[int, Expected] = field(default_factory=dict)
    keys: dict[str, tuple[Said, dict[str, Any]]] = field(default_factory=dict)


class Histories(RuleBasedStateMachine):
    """Sessions of one tenant."""

    sessions = Bundle("sessions")
    files = Bundle("files")
    http: httpx2.Client

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[str, Expected] = {}
        self.checked: dict[str, Expected] = {}
        self.gone: set[str] = set()
        self.num_keys = 0

    @initialize(target=sessions)
    def begin(self) -> Any:
        one, other = self.create(False), self.create(True)
        for number, session in enumerate([one, one, other, one]):
            self.learn(session, ("I am Ann.", number), with_key=True)
        return multiple(one, other)

    @rule(target=sessions, contribute=st.booleans())
    def create(self, contribute: bool) -> str:
        session = self._made(self.http.post("/v1/sessions", json={"contribute": contribute}))
        self.expected[session] = Expected(contribute=contribute)
        return session

    @rule(session=sessions, said=words, with_key=st.booleans())
    def learn(self, session: str, said: Said, with_key: bool) -> None:
        before = self.expected[session]
        key = f"key-{self.num_keys}" if with_key else None
        self.num_keys += 1
        turn = self._turn(session, said, key=key, if_version=before.version)
        after = replace(
            before,
            version=before.version + 1,
            learned=(*before.learned, said),
            turns=(*before.turns, turn),
            kept={**before.kept, before.version: before},
            keys={**before.keys, key: (said, turn)} if key else before.keys,
        )
        assert (turn["index"], turn["memory"]["version"], turn["memory"]["learned"]) == (
            len(before.turns),
            after.version,
            True,
        )
        self.expected[session] = after

    @rule(session=sessions, said=words)
    def ask(self, session: str, said: Said) -> None:
        turn = self._turn(session, said, learn=False)
        assert (turn["memory"]["version"], turn["memory"]["learned"]) == (self.expected[session].version, False)

    @rule(session=sessions, data=st.data())
    def repeat(self, session: str, data: st.DataObject) -> None:
        keys = self.expected[session].keys
        if not keys:
            return
        key = data.draw(st.sampled_from(sorted(keys)))
        said, turn = keys[key]
        # A stored turn may have been asked for with `if_version`, which is part of what was asked.
        asked = {"if_version": turn["memory"]["version"] - 1}
        assert _untimed(self._ask(session, said, key, asked).json()) == _untimed(turn)
        assert self._ask(session, ("Something else.", 0), key, asked).status_code == 409

    @rule(session=sessions)
    def refuse_another_version(self, session: str) -> None:
        answer = self._ask(session, ("It rains.", 0), None, {"if_version": self.expected[session].version + 1})
        assert answer.status_code == 409

    @rule(session=sessions, data=st.data())
    def roll_back(self, session: str, data: st.DataObject) -> None:
        now = self.expected[session]
        version = data.draw(st.sampled_from(sorted({0, *self._retained(session)})))
        then = now if version == now.version else now.kept.get(version, Expected())
        answer = self.http.post(f"/v1/sessions/{session}/rollback", json={"version": version})
        assert answer.status_code == 200, answer.text
        if version != now.version:
            ids = {turn["id"] for turn in then.turns}
            keys = {key: used for key, used in now.keys.items() if used[1]["id"] in ids}
            kept = {**now.kept, now.version: now}
            self.expected[session] = replace(
                now, version=now.version + 1, learned=then.learned, turns=then.turns, kept=kept, keys=keys
            )

    @rule(target=sessions, session=sessions, data=st.data())
    def fork(self, session: str, data: st.DataObject) -> str:
        now = self.expected[session]
        version = data.draw(st.sampled_from([None, *self._retained(session)]))
        then = now if version in (None, now.version) else now.kept[version]
        copy = self._made(self.http.post(f"/v1/sessions/{session}/fork", json={"version": version}))
        self.expected[copy] = _copied(copy, then, now.metadata)
        return copy

    @rule(target=files, session=sessions)
    def export(self, session: str) -> tuple[bytes, Expected]:
        answer = self.http.get(f"/v1/sessions/{session}/export")
        assert answer.status_code == 200, answer.text
        return answer.content, self.expected[session]

    @rule(target=sessions, file=files)
    def import_file(self, file: tuple[bytes, Expected]) -> str:
        content, then = file
        session = self._made(self.http.post("/v1/sessions/import", content=content))
        self.expected[session] = _copied(session, then, then.metadata)
        return session

    @rule(session=sessions, contribute=st.booleans(), value=st.text(max_size=8).filter(str.isprintable))
    def update(self, session: str, contribute: bool, value: str) -> None:
        changes = {"contribute": contribute, "metadata": {"name": value}}
        assert self.http.patch(f"/v1/sessions/{session}", json=changes).status_code == 200
        now = self.expected[session]
        self.expected[session] = replace(now, contribute=contribute, metadata=(("name", value),))

    @rule(session=consumes(sessions))
    def delete(self, session: str) -> None:
        answer = self.http.delete(f"/v1/sessions/{session}")
        assert (answer.status_code, answer.json()["deleted"]) == (200, True)
        del self.expected[session]
        self.gone.add(session)

    @rule()
    def gone_is_gone(self) -> None:
        for session in sorted(self.gone)[:2]:
            path = f"/v1/sessions/{session}"
            for read in ("", "/turns", "/memory", "/versions", "/export"):
                assert self.http.get(path + read).status_code == 404
            assert self.http.delete(path).status_code == 404
            assert self._ask(session, ("It rains.", 0), None, {}).status_code == 404

    @rule(limit=st.integers(1, 4))
    def list_them(self, limit: int) -> None:
        found = [session["id"] for session in self._pages("/v1/sessions", limit)]
        assert len(found) == len(set(found))
        assert set(self.expected) <= set(found)
        assert not self.gone & set(found)

    @rule(session=sessions, limit=st.integers(1, 4))
    def read_transcript(self, session: str, limit: int) -> None:
        found = self._pages(f"/v1/sessions/{session}/turns", limit)
        assert [_untimed(turn) for turn in found] == [_untimed(turn) for turn in self.expected[session].turns]

    @invariant()
    def what_changed_is_as_it_should_be(self) -> None:
        for session_id, expected in self.expected.items():
            if self.checked.get(session_id) is expected:
                continue
            self.checked[session_id] = expected
            session = self.http.get(f"/v1/sessions/{session_id}").json()
            assert (session["version"], session["num_turns"]) == (expected.version, len(expected.turns))
            assert (session["contribute"], session["metadata"]) == (expected.contribute, dict(expected.metadata))
            assert session["num_tokens"] == sum(turn["usage"]["total_tokens"] for turn in expected.turns)

    def teardown(self) -> None:
        self.checked.clear()
        self.what_changed_is_as_it_should_be()
        for session in list(self.expected):
            self.delete(session)

    def _made(self, answer: httpx2.Response) -> str:
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def _retained(self, session: str) -> list[int]:
        versions = self.http.get(f"/v1/sessions/{session}/versions").json()["data"]
        numbers = [version["version"] for version in versions]
        assert numbers == sorted(numbers, reverse=True)
        assert len(numbers) <= KEPT_VERSIONS
        now = self.expected[session]
        assert (numbers[0] if numbers else 0) == now.version
        assert set(numbers) <= {now.version, *now.kept}
        return numbers

    def _turn(self, session: str, said: Said, *, key: str | None = None, **more: Any) -> dict[str, Any]:
        answer = self._ask(session, said, key, more)
        assert answer.status_code == 200, answer.text
        turn: dict[str, Any] = answer.json()
        known = replies.setdefault((self.expected[session].learned, said), turn["reply"])
        assert turn["reply"] == known, "the same memory, message and seed"
        return turn

    def _ask(self, session: str, said: Said, key: str | None, more: dict[str, Any]) -> httpx2.Response:
        body = {"message": said[0], "seed": said[1], "max_tokens": 4, "temperature": 1.0, **more}
        headers = {"Idempotency-Key": key} if key else {}
        return self.http.post(f"/v1/sessions/{session}/turns", json=body, headers=headers)

    def _pages(self, path: str, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more, after = True, dict[str, str]()
        while more:
            page = self.http.get(path, params={"limit": limit, **after}).json()
            assert len(page["data"]) <= limit
            found += page["data"]
            more, after = page["has_more"], {"after": found[-1]["id"]} if found else {}
        return found


def _copied(session: str, then: Expected, metadata: tuple[tuple[str, str], ...]) -> Expected:
    """A copy begins with no past to go back to, and does not contribute."""
    turns = tuple({**turn, "session_id": session} for turn in then.turns)
    return Expected(then.version, then.learned, turns, False, metadata)


def _untimed(turn: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if name != "timing"}


@pytest.fixture
def machine(url: str) -> Iterator[type[Histories]]:
    """The machine, told whom to speak to."""
    with httpx2.Client(base_url=url, headers=headers_of("histories"), timeout=60) as http:
        yield type("LiveHistories", (Histories,), {"http": http})


def test_any_history_is_as_it_should_be(machine: type[Histories], healthy: None) -> None:
    asked = settings(examples(4, 0.1 / NUM_STEPS), stateful_step_count=NUM_STEPS)
    run_state_machine_as_test(seed(SEED)(machine), settings=asked)
    assert len(set(replies.values())) > 1

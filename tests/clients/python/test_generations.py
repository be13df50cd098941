"""`hope generations` against a real server and worker: what it prints, and with which status it ends."""

from __future__ import annotations

import pytest
from hope_client import HopeClient
from hope_client.generations import describe, main


def test_they_are_listed_and_switched(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url]) == 0
    assert capsys.readouterr().out.split() == ["0", "active", "the", "checkpoint", "alone"]
    assert main(["--url", url, "activate", "0"]) == 0
    assert main(["--url", url, "activate", "3"]) == 2
    assert "there is no generation 3" in capsys.readouterr().err


def test_a_consolidation_is_waited_for(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url, "consolidate"]) == 0
    assert capsys.readouterr().out.splitlines() == ["empty, 0 turns of 0 sessions", "nothing new to take in"]
    assert main(["--url", url, "rebuild", "--without", "gone"]) == 0
    with HopeClient(url) as client:
        running = client.consolidate(without="gone")
        assert client.consolidation(running["id"])["id"] == running["id"]
        assert [one["generation"] for one in client.generations()] == [0]
        assert client.activate_generation(0)["active"]


def test_a_session_that_is_not_in_quarantine_cannot_be_let_out(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url, "quarantine"]) == 0
    assert main(["--url", url, "let-out", "nobody"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, "nobody" in printed.err) == ("", True)


def test_a_refused_candidate_is_shown_with_its_figures() -> None:
    lines = describe(
        {
            "id": "c-1",
            "object": "consolidation",
            "status": "rejected",
            "from_generation": 0,
            "to_generation": None,
            "num_sessions": 2,
            "num_turns": 9,
            "reason": "the gate refused it: drift 33 (before 0, limit 32)",
            "started_at": "2026-01-01T00:00:00Z",
            "finished_at": "2026-01-01T00:00:09Z",
            "gate": {
                "drift": {"before": 0.0, "after": 33.0, "limit": 32.0, "passed": False},
                "calm": {"before": 1.0, "after": 0.9, "limit": 0.7, "passed": True},
            },
        }
    )
    assert lines[0] == "rejected, 9 turns of 2 sessions"
    assert lines[1].startswith("the gate refused it")
    assert [line.split() for line in lines[2:]] == [
        ["before", "after", "limit"],
        ["drift", "0", "33", "32", "refused"],
        ["calm", "1", "0.9", "0.7"],
    ]


def test_nobody_there_is_said_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "list"]) == 2
    assert "No server answers" in capsys.readouterr().err

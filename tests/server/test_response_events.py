"""A turn as a response, held against the official client's own types: whole, streamed, failed."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from engine import (
    Candidate,
    HopeError,
    LeaseLost,
    MemoryReport,
    RateLimited,
    SaidToken,
    Timing,
    Turn,
    TurnCompleted,
    TurnCreated,
    TurnEvent,
    TurnToken,
    Usage,
)
from server.response_events import Asked, ResponseEvents, ended, stored
from tests.server.responding import AFTER, BEFORE, DELTA

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TURN_ID = "turn-" + "0a" * 12
ASKED = Asked("hope", 1, "s", {"conversation": {"id": "s"}, "temperature": 0.5, "metadata": {"a": "b"}})


def turn(finish_reason: str = "stop", *, learned: bool = True) -> Turn:
    memory = MemoryReport(1, 0, learned, 0.5, ())
    when = "2026-01-02T03:04:05.000000Z"
    usage, timing = Usage(3, 2, 5), Timing(1.0, 1.0, 1.0, 1.0)
    return Turn(TURN_ID, "s", 0, when, "Hello.", "Hi there", finish_reason, usage, memory, timing)


@pytest.mark.parametrize(("finish_reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_a_whole_response_is_of_the_clients_type(finish_reason: str, status: str) -> None:
    for response in (ended(ASKED, turn(finish_reason)), stored(turn(finish_reason), None, "hope")):
        read = Response.model_validate(response)
        assert (read.status, read.output_text) == (status, "Hi there")
        assert (read.incomplete_details is None) == (status == "completed")
    assert "hope" not in ended(ASKED, turn(learned=False))


@pytest.mark.parametrize(("finish_reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_every_event_is_of_the_clients_type(finish_reason: str, status: str) -> None:
    said = SaidToken("Hi", b"Hi", -0.5, (Candidate("Hi", b"Hi", -0.5), Candidate("<|end|>", None, -3.0)))
    events: list[TurnEvent] = [
        TurnCreated(TURN_ID),
        TurnToken(TURN_ID, 0, "Hi", (said,)),
        TurnToken(TURN_ID, 1, " there"),
        TurnCompleted(turn(finish_reason)),
    ]
    wording = ResponseEvents(ASKED, mark={"stream_id": "lane"})
    sent = [one for event in events for one in wording.event(event)]
    assert [one["type"] for one in sent] == [*BEFORE, DELTA, DELTA, *AFTER, f"response.{status}"]
    assert [EVENT.validate_python(one).sequence_number for one in sent] == list(range(len(sent)))
    assert {one["stream_id"] for one in sent} == {"lane"}
    assert sent[-1]["response"]["output"][0]["content"][0]["logprobs"] == sent[4]["logprobs"]


@pytest.mark.parametrize(
    ("error", "code", "known"),
    [(LeaseLost("lost"), "lease_lost", "server_error"), (RateLimited("slow"), "rate_limited", "rate_limit_exceeded")],
)
def test_a_failure_is_raised_by_the_client_and_ends_the_response(error: HopeError, code: str, known: str) -> None:
    wording = ResponseEvents(ASKED)
    begun = wording.event(TurnCreated(TURN_ID))
    said, failed = (EVENT.validate_python(one) for one in wording.failure(error))
    assert (said.type, said.code, said.error["code"], said.message) == ("error", code, code, error.message)
    assert (failed.type, failed.response.status, failed.response.error.code) == ("response.failed", "failed", known)
    assert failed.response.id == begun[0]["response"]["id"]
    assert failed.sequence_number == len(begun) + 1

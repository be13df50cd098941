"""The OpenAPI document tells the contract's errors, and what this very server asks for."""

from __future__ import annotations

from typing import Any

import pytest

from engine import Engine
from server.app import create_app
from server.auth import parse_keys
from server.metrics import Metrics
from server.settings import Settings
from tests.server.running import with_server

TURNS = "/v1/sessions/{session_id}/turns"


@pytest.fixture
def document(engine: Engine, metrics: Metrics) -> dict[str, Any]:
    """Of a server without keys."""
    document: dict[str, Any] = create_app(engine, Settings(), metrics).openapi()
    return document


def test_every_failure_is_the_error_object(document: dict[str, Any]) -> None:
    failures = [
        answer
        for operations in document["paths"].values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        if status >= "400"
    ]
    assert len(failures) > 100
    for answer in failures:
        assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorObject"}
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_a_turn_may_fail_as_the_contract_says(document: dict[str, Any]) -> None:
    answers = document["paths"][TURNS]["post"]["responses"]
    assert list(answers) == ["200", "400", "401", "403", "404", "409", "413", "429", "500", "503", "504"]
    assert list(answers["429"]["headers"]) == list(answers["503"]["headers"]) == ["Retry-After"]
    assert list(answers["409"]["headers"]) == list(answers["504"]["headers"]) == ["x-should-retry"]
    assert list(document["paths"][TURNS]["get"]["responses"]) == ["200", "400", "401", "403", "404", "500", "503"]


def test_bounds_are_exact_and_this_servers_own(engine: Engine, metrics: Metrics) -> None:
    bodies = create_app(engine, with_server(max_new_tokens=7), metrics).openapi()["components"]["schemas"]
    turn, chat = bodies["TurnCreate"]["properties"], bodies["ChatCreate"]["properties"]
    assert turn["max_tokens"]["maximum"] == chat["max_completion_tokens"]["anyOf"][0]["maximum"] == 7
    assert repr(turn["seed"]["anyOf"][0]["exclusiveMaximum"]) == repr(2**63)
    assert chat["tools"]["enum"] == [None, []]


def test_a_server_with_keys_says_so(engine: Engine, metrics: Metrics, document: dict[str, Any]) -> None:
    assert "securitySchemes" not in document["components"]
    locked = create_app(engine, with_server(api_keys=parse_keys("secret:acme")), metrics).openapi()
    assert locked["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert locked["paths"][TURNS]["post"]["security"] == [{"key": []}]
    assert "security" not in locked["paths"]["/livez"]["get"]

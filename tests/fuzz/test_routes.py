"""Every route, by its own description: valid and invalid requests are answered as the reference says they may be."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import requests
import schemathesis
from hypothesis import given, seed
from schemathesis import APIOperation, BaseSchema, Case, CheckFunction, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.fuzz.target import MAX_NEW_TOKENS, SEED, examples, headers_of

HEADERS = headers_of("routes")
NUM_ROUTES = 30
SESSIONS = ("one", "two", "three")
IMPORT = "/v1/sessions/import"
# Their one parameter may be any text.
ANYTHING_GOES = {"GET /v1/models/{model}", "DELETE /v1/responses/{response_id}"}
# What no schema tells: the bytes of a file, whose turn it is in a conversation, which parts of one are offered.
CHOOSY = {IMPORT, "/v1/chat/completions", "/v1/responses"}
# A turn may be given less time than it needs; nothing else may go wrong here that is not the caller's fault.
CONFIG = {"headers": HEADERS, "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "4xx", "504"]}}}


@pytest.fixture(scope="module")
def described(url: str) -> BaseSchema:
    """The server's own description of its routes, and some sessions to speak of."""
    with httpx2.Client(base_url=url, headers=HEADERS, timeout=60) as http:
        for session_id in SESSIONS:
            assert http.post("/v1/sessions", json={"id": session_id}).status_code in (201, 409)
        document = http.get("/openapi.json").json()
    schema: BaseSchema = schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(CONFIG))
    schema.config.update(base_url=url)
    return schema


def test_routes_answer_as_they_are_described(described: BaseSchema, healthy: None, subtests: pytest.Subtests) -> None:
    operations = [found.ok() for found in described.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) >= NUM_ROUTES
    with requests.Session() as session:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                with subtests.test(operation.label, mode=mode.value):
                    _fuzz(operation, mode, session)


def _fuzz(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, session: requests.Session) -> None:
    if mode is GenerationMode.NEGATIVE and not _can_be_wrong(operation):
        return
    unfair: list[CheckFunction] = [checks.positive_data_acceptance] if operation.path in CHOOSY else []
    if operation.path == IMPORT:
        unfair.append(checks.allow_header_conformance)  # a session may be called `import`

    @seed(SEED)
    @examples(2, 0.4 / NUM_ROUTES)
    @given(operation.as_strategy(mode))
    def fuzz(case: Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE:
            _make_likely(case)
        case.call_and_validate(session=session, headers=HEADERS, excluded_checks=unfair, timeout=60)

    fuzz()


def _can_be_wrong(operation: APIOperation[Any, Any, Any, Any]) -> bool:
    takes_something = operation.body or operation.query or operation.path_parameters
    return bool(takes_something) and operation.label not in ANYTHING_GOES


def _make_likely(case: Case[Any]) -> None:
    """Most requests that are valid speak of a session and a model that are there."""
    named = case.path_parameters.get("session_id")
    if named is not None and len(named) % 3 and case.method != "DELETE":
        case.path_parameters["session_id"] = SESSIONS[len(named) % len(SESSIONS)]
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "hope"
        case.body.setdefault("max_tokens" if "messages" in case.body else "max_output_tokens", MAX_NEW_TOKENS)

"""Sessions over HTTP: made, listed, changed, erased; their transcript and their memory from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.server.running import Running


async def test_session_is_the_session_of_the_contract(live: Running) -> None:
    answer = await live.http.post("/v1/sessions", json={"id": "s", "metadata": {"who": "me"}, "contribute": True})
    assert answer.status_code == 201
    session = answer.json()
    assert set(session) == {
        "id", "object", "created_at", "updated_at", "version", "generation", "num_turns", "num_tokens",
        "memory_bytes", "contribute", "metadata",
    }  # fmt: skip
    assert (session["id"], session["object"], session["version"]) == ("s", "session", 0)
    assert (session["metadata"], session["contribute"]) == ({"who": "me"}, True)
    assert (await live.http.get("/v1/sessions/s")).json() == session


@pytest.mark.parametrize("content", [b"", b"{}"])
async def test_session_without_an_id_is_given_one(live: Running, content: bytes) -> None:
    answer = await live.http.post("/v1/sessions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201, answer.text
    assert (await live.http.get(f"/v1/sessions/{answer.json()['id']}")).status_code == 200
    assert answer.json()["contribute"] is False


async def test_taken_id_is_409(live: Running) -> None:
    await live.new_session("s")
    answer = await live.http.post("/v1/sessions", json={"id": "s"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": ""}, "id"),
        ({"id": "a" * 65}, "id"),
        ({"id": "a b"}, "id"),
        ({"id": "a\n"}, "id"),
        ({"contribute": "yes"}, "contribute"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"name": "x"}, "name"),
    ],
)
async def test_bad_field_is_400_and_named(live: Running, body: dict[str, object], param: str) -> None:
    answer = await live.http.post("/v1/sessions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert error["param"].startswith(param)


async def test_sessions_are_listed_a_page_at_a_time(live: Running) -> None:
    names = {f"s{number}" for number in range(5)}
    for name in names:
        await live.new_session(name)
    seen: list[str] = []
    after = ""
    while True:
        page = (await live.http.get(f"/v1/sessions?limit=2{after}")).json()
        assert page["object"] == "list"
        assert len(page["data"]) <= 2
        seen += [session["id"] for session in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={seen[-1]}"
    assert (len(seen), set(seen)) == (5, names)


async def test_patch_changes_only_what_it_names(live: Running) -> None:
    await live.http.post("/v1/sessions", json={"id": "s", "metadata": {"who": "me"}})
    changed = (await live.http.patch("/v1/sessions/s", json={"contribute": True})).json()
    assert (changed["contribute"], changed["metadata"], changed["version"]) == (True, {"who": "me"}, 0)
    changed = (await live.http.patch("/v1/sessions/s", json={"metadata": {"who": "you"}})).json()
    assert (changed["contribute"], changed["metadata"]) == (True, {"who": "you"})


async def test_deleted_session_is_gone(live: Running) -> None:
    await live.new_session("s")
    answer = await live.http.delete("/v1/sessions/s")
    assert answer.json() == {"id": "s", "object": "session.deleted", "deleted": True}
    for path in ("", "/turns", "/memory"):
        assert (await live.http.get(f"/v1/sessions/s{path}")).status_code == 404


async def test_transcript_lists_turns_as_they_were_answered(live: Running) -> None:
    await live.new_session("s")
    answers = [
        (await live.http.post("/v1/sessions/s/turns", json={"message": text, "max_tokens": 2})).json()
        for text in ("one", "two", "three")
    ]
    first = (await live.http.get("/v1/sessions/s/turns?limit=2")).json()
    assert ([turn["message"] for turn in first["data"]], first["has_more"]) == (["one", "two"], True)
    assert [turn["reply"] for turn in first["data"]] == [turn["reply"] for turn in answers[:2]]
    rest = (await live.http.get(f"/v1/sessions/s/turns?limit=2&after={first['data'][-1]['id']}")).json()
    assert ([turn["id"] for turn in rest["data"]], rest["has_more"]) == ([answers[2]["id"]], False)


async def test_memory_shows_levels_and_surprise(live: Running) -> None:
    await live.new_session("s")
    turn = (await live.http.post("/v1/sessions/s/turns", json={"message": "hello", "max_tokens": 2})).json()
    memory = (await live.http.get("/v1/sessions/s/memory")).json()
    assert set(memory) == {"version", "generation", "levels", "surprise"}
    assert memory["version"] == 1
    assert memory["surprise"] == [{"turn": 0, "value": turn["memory"]["surprise"]}]
    assert {level["name"] for level in memory["levels"]} >= {"titans", "cms.fast"}
    for level in memory["levels"]:
        assert set(level) == {"name", "scope", "clock", "updates", "parameters", "bytes", "norm", "drift"}


async def test_an_idempotency_key_returns_the_stored_turn_and_refuses_another_body(live: Running) -> None:
    await live.new_session("s")
    headers = {"Idempotency-Key": "once"}
    body = {"message": "hello", "max_tokens": 2}
    first = (await live.http.post("/v1/sessions/s/turns", json=body, headers=headers)).json()
    again = (await live.http.post("/v1/sessions/s/turns", json=body, headers=headers)).json()
    assert (again["id"], again["reply"], again["memory"]) == (first["id"], first["reply"], first["memory"])
    assert (await live.http.get("/v1/sessions/s")).json()["version"] == 1
    other = await live.http.post("/v1/sessions/s/turns", json={**body, "message": "bye"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")

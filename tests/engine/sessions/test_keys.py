"""Names in Redis: one hash tag for a session, and no two sessions that share a key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.sessions.keys import SessionKeys, parse_session_name, session_index, session_name

WORDS = st.text(min_size=1, max_size=12)


@given(WORDS, WORDS)
def test_a_name_is_read_back(tenant: str, session_id: str) -> None:
    assert parse_session_name(session_name(tenant, session_id)) == (tenant, session_id)


@given(WORDS, WORDS, WORDS, WORDS)
def test_two_sessions_share_no_key(tenant: str, session_id: str, other_tenant: str, other_id: str) -> None:
    here, there = SessionKeys(tenant, session_id), SessionKeys(other_tenant, other_id)
    same = (tenant, session_id) == (other_tenant, other_id)
    assert (here.head == there.head) == same
    assert (here.chunks("1.a", 1) == there.chunks("1.a", 1)) == same
    assert session_index(tenant) not in there.fixed


@given(WORDS, WORDS)
def test_all_keys_of_a_session_have_one_hash_tag(tenant: str, session_id: str) -> None:
    keys = SessionKeys(tenant, session_id)
    names = [*keys.fixed, *keys.chunks("1.a", 3)]
    # As Redis Cluster cuts it: between the first brace and the next closing one.
    assert {name.split("{", 1)[1].split("}", 1)[0] for name in names} == {session_name(tenant, session_id)}
    assert len(set(names)) == len(names)
    assert all(name.startswith("hope:1:{") for name in names)

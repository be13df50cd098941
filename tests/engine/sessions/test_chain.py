"""The digest chain: the same for the same conversation, another for any other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core import Said
from engine.sessions.chain import BEGINNING, alone, extend, marks

MESSAGES = st.lists(st.builds(Said, st.sampled_from(["user", "assistant", "system"]), st.text()), max_size=6)


def heard(messages: list[Said]) -> list[tuple[str, str]]:
    """What counts of a conversation."""
    return [(said.role, said.text.strip()) for said in messages if said.role != "system"]


@given(MESSAGES, MESSAGES)
def test_two_conversations_share_a_digest_only_where_they_are_the_same(first: list[Said], second: list[Said]) -> None:
    same = heard(first) == heard(second)
    assert (extend(BEGINNING, first) == extend(BEGINNING, second)) == same


@given(MESSAGES, MESSAGES)
def test_it_can_be_taken_up_anywhere(first: list[Said], second: list[Said]) -> None:
    assert extend(extend(BEGINNING, first), second) == extend(BEGINNING, [*first, *second])


@given(MESSAGES)
def test_marks_stand_after_each_of_the_assistants_messages(messages: list[Said]) -> None:
    found = marks(messages)
    assert [number for number, _ in found] == [n for n, said in enumerate(messages, 1) if said.role == "assistant"]
    assert [digest for _, digest in found] == [extend(BEGINNING, messages[:number]) for number, _ in found]


@given(st.text(), st.text())
def test_a_system_message_stands_for_itself(first: str, second: str) -> None:
    one, other = alone(Said("system", first)), alone(Said("system", second))
    assert (one == other) == (first.strip() == second.strip())
    assert one != extend(BEGINNING, [Said("assistant", first)])

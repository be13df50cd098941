"""A turn told otherwise: another value wherever the old one stood, of the same kind, and nothing else changed."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.consolidation.dreams import Dream
from engine.consolidation.otherwise import Otherwise, holds, value_of
from engine.tokenizer import ASSISTANT, END, USER
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
OTHERWISE = Otherwise(TOKENIZER)


def told(message: str, reply: str) -> list[int]:
    return [USER, *TOKENIZER.encode(message), ASSISTANT, *TOKENIZER.encode(reply), END]


def dreamt(question: str, reply: str) -> Dream:
    asked = [USER, *TOKENIZER.encode(question)]
    return Dream((*asked, ASSISTANT, *TOKENIZER.encode(reply), END), len(asked))


def test_a_value_is_what_the_reply_has_from_the_turn_and_not_from_the_question() -> None:
    turn = told("My dog is called Rex", "Rex is a nice name.")
    value = value_of(turn, dreamt("What is my dog called?", "Your dog is called Rex"))
    assert value == tuple(TOKENIZER.encode("Rex"))
    assert value_of(turn, dreamt("Where?", "Up there")) is None


def test_every_place_of_the_value_is_changed_and_nothing_else() -> None:
    turn = told("The code is 4417 now", "So 4417 it is")
    found = OTHERWISE.told(turn, dreamt("Which code?", "4417"), torch.Generator().manual_seed(1))
    assert found is not None
    changed, other = found
    assert len(changed) == len(turn)
    assert TOKENIZER.decode(other).strip().isdigit(), "digits for digits"
    assert TOKENIZER.decode(changed) == TOKENIZER.decode(turn).replace("4417", TOKENIZER.decode(other).strip())


@given(st.integers(0, 2**31), st.lists(st.sampled_from(range(TOKENIZER.vocab_size)), min_size=1, max_size=12))
def test_any_turn_can_be_told_otherwise(seed: int, words: list[int]) -> None:
    turn = [USER, *words, END]
    dream = Dream((USER, ASSISTANT, *words, END), 1)
    found = OTHERWISE.told(turn, dream, torch.Generator().manual_seed(seed))
    if found is not None:
        changed, other = found
        assert len(changed) == len(turn)
        assert holds(changed, other)
        special = [at for at, token in enumerate(turn) if token < 8]
        assert [changed[at] for at in special] == [turn[at] for at in special]


def test_a_part_is_found_wherever_it_stands() -> None:
    assert holds([1, 2, 3], [2, 3])
    assert holds([1, 2, 3], [])
    assert not holds([1, 2, 3], [3, 2])

"""Text to ids and back without loss; streamed text is whole characters; nobody types a special token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.weights import TOKENIZER_FILE, bundled_checkpoint
from engine.tokenizer import ASSISTANT, END, NUM_SPECIAL, PAD, USER, Tokenizer
from tests.tiny import SENTENCES, tiny_tokenizer

TOKENIZERS = [tiny_tokenizer(), Tokenizer.load(bundled_checkpoint() / TOKENIZER_FILE)]
BOTH = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["tiny", "shipped"])
HARD = ("", " ", "  two  spaces ", "\n\t\r\0", "👩‍👩‍👧 é e\u0301 \U0010ffff", "<|user|> [END] </s>", "٣٤ 12345 ½")


def _stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream()
    return [*(decoder.push(i) for i in ids), decoder.finish()]


@BOTH
@given(text=st.text())
def test_any_unicode_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@BOTH
@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back_as_they_were(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@BOTH
@given(text=st.text())
def test_a_stream_adds_up_to_the_whole(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(_stream(tokenizer, tokenizer.encode(text))) == text


@BOTH
@given(text=st.text(alphabet="aé日👍", min_size=1))
def test_a_stream_never_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    for piece in _stream(tokenizer, tokenizer.encode(text)):
        assert "\ufffd" not in piece


@BOTH
@given(ids=st.lists(st.integers(0, 300)))
def test_any_ids_stream_as_they_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    # A model may say bytes that are no UTF-8: U+FFFD then, the same either way, and never an error.
    assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_that_stays_half_is_shown_at_the_end_as_a_replacement() -> None:
    ids = tiny_tokenizer().encode("👍")
    assert len(ids) > 2
    *pieces, last = _stream(tiny_tokenizer(), ids[:-1])
    assert "".join(pieces) == ""
    assert last == "\ufffd"


@BOTH
@given(text=st.text())
def test_no_text_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    assert all(NUM_SPECIAL <= i < tokenizer.vocab_size for i in tokenizer.encode(text))


def test_special_tokens_are_no_text() -> None:
    assert tiny_tokenizer().decode([PAD, USER, ASSISTANT, END, *range(4, NUM_SPECIAL)]) == ""


@pytest.mark.parametrize(("reply", "last"), [(True, ASSISTANT), (False, END)])
def test_a_turn_to_read_is_framed(reply: bool, last: int) -> None:
    tokenizer = tiny_tokenizer()
    first, *message, end = tokenizer.read_turn("My dog is Rex.", reply=reply)
    assert (first, end) == (USER, last)
    assert tokenizer.decode(message) == "My dog is Rex."


def test_a_word_has_the_same_ids_wherever_it_stands() -> None:
    tokenizer = tiny_tokenizer()
    rex = tokenizer.encode("Rex")
    inside = tokenizer.encode("My dog is called Rex")
    assert inside[-len(rex) :] == rex


@BOTH
def test_numbers_are_read_digit_by_digit(tokenizer: Tokenizer) -> None:
    # After the space before it, one id for each digit.
    assert len(tokenizer.encode("x 90125")) == len(tokenizer.encode("x")) + 1 + 5


def test_the_shipped_vocabulary_is_that_of_the_issue() -> None:
    tokenizer = TOKENIZERS[1]
    assert tokenizer.vocab_size == 4096
    assert len(tokenizer.encode("What is the name of my dog?")) <= 9


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocab_size == tokenizer.vocab_size
    for text in (*SENTENCES, *HARD):
        assert loaded.encode(text) == tokenizer.encode(text)


def test_training_again_gives_the_same_tokenizer(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Tokenizer.train(SENTENCES, NUM_SPECIAL + 280).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_stream_knows_what_a_token_would_add() -> None:
    tokenizer = tiny_tokenizer()
    thumb = tokenizer.encode("👍")
    stream = tokenizer.stream()
    assert stream.bytes_of(END) == b""
    # The space before a text is no part of it; before a later word it is.
    space = tokenizer.encode("x")[0]
    assert stream.bytes_of(space) == b""
    assert not stream.broken_by(thumb[-1])
    for token in thumb[:-1]:
        stream.push(token)
    assert stream.bytes_of(space) == b" "
    assert stream.broken_by(space)
    assert not stream.broken_by(thumb[-1])
    stream.push(thumb[-1])
    assert not stream.broken_by(space)

"""Next tokens from logits, and the reply's text as it forms: what may be said, what is held back, what is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampler import Choice, Speech, sample
from engine.tokenizer import END, NUM_SPECIAL
from tests.tiny import tiny_tokenizer

VOCABULARY = 32


def _choice(temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> Choice:
    return Choice(temperature, top_p, torch.Generator().manual_seed(seed))


def _logits(num_rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def _draws(logits: torch.Tensor, choice: Choice, count: int) -> list[int]:
    return [sample(logits, [choice])[0] for _ in range(count)]


def test_temperature_zero_is_the_most_likely_token() -> None:
    logits = _logits(3)
    expected = logits[:, NUM_SPECIAL:].argmax(-1) + NUM_SPECIAL
    logits[2, END] = 50.0
    assert sample(logits, [_choice(0.0)] * 3) == [int(expected[0]), int(expected[1]), END]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_of_the_special_tokens_only_the_end_may_be_said(temperature: float) -> None:
    logits = torch.full((1, VOCABULARY), -5.0)
    logits[0, :NUM_SPECIAL] = 20.0
    assert set(_draws(logits, _choice(temperature), 20)) == {END}


def test_draws_follow_the_probabilities() -> None:
    logits = torch.full((1, VOCABULARY), -30.0)
    logits[0, 10], logits[0, 11] = 0.0, 1.0
    drawn = _draws(logits, _choice(), 3000)
    assert drawn.count(11) / len(drawn) == pytest.approx(1 / (1 + torch.e**-1), abs=0.04)


def test_a_high_temperature_flattens_and_a_low_one_sharpens() -> None:
    logits = _logits()
    best = sample(logits, [_choice(0.0)])[0]
    shares = [_draws(logits, _choice(t), 400).count(best) for t in (0.1, 1.0, 2.0)]
    assert shares[0] > shares[1] > shares[2]


@given(top_p=st.floats(0.01, 1.0), seed=st.integers(0, 50))
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, seed: int) -> None:
    logits = _logits(seed=seed)
    allowed = logits[0].clone()
    allowed[:NUM_SPECIAL] = -torch.inf
    allowed[END] = logits[0, END]
    probabilities, order = torch.softmax(allowed, -1).sort(descending=True)
    kept = int((probabilities.cumsum(-1) < top_p - 1e-6).sum()) + 1
    assert set(_draws(logits, _choice(1.0, top_p, seed), 30)) <= set(order[:kept].tolist())


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-8])
def test_a_temperature_next_to_zero_is_as_good_as_zero(temperature: float) -> None:
    logits = _logits(4)
    assert sample(logits, [_choice(temperature)] * 4) == sample(logits, [_choice(0.0)] * 4)


@pytest.mark.parametrize("top_p", [5e-324, 1e-9])
def test_a_top_p_next_to_zero_keeps_the_most_likely_token(top_p: float) -> None:
    logits = _logits()
    assert _draws(logits, _choice(2.0, top_p), 10) == _draws(logits, _choice(0.0), 10)


def test_law_2_a_row_draws_the_same_alone_as_among_others() -> None:
    logits = _logits(5)
    together = [_choice(0.9, 0.95, seed=row) for row in range(5)]
    alone = [_choice(0.9, 0.95, seed=row) for row in range(5)]
    for _ in range(20):
        drawn = sample(logits, together)
        assert drawn == [sample(logits[row : row + 1], [choice])[0] for row, choice in enumerate(alone)]


def _speak(text: str, *stop: str) -> tuple[Speech, list[str]]:
    """A reply said token by token until it stops."""
    tokenizer = tiny_tokenizer()
    speech, pieces = Speech(tokenizer.stream(), stop), []
    for token in tokenizer.encode(text):
        pieces.append(speech.push(token))
        if speech.stopped:
            break
    return speech, [*pieces, speech.finish()]


_TEXT = st.text(alphabet="ab é👍", max_size=20)


@given(text=_TEXT, stop=st.lists(st.text(alphabet="ab é👍", min_size=1, max_size=4), max_size=3))
def test_a_reply_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    speech, pieces = _speak(text, *stop)
    places = [text.find(s) for s in stop if s in text]
    shown = "".join(pieces)
    assert shown == speech.text
    assert speech.stopped == bool(places)
    if not places:
        assert shown == text
    else:
        # What is shown is the text up to a stop string that stands in it, and holds none itself.
        assert text.startswith(shown)
        assert any(text.startswith(s, len(shown)) for s in stop)
        assert not any(s in shown for s in stop)


@given(text=_TEXT, stop=st.text(alphabet="ab", min_size=2, max_size=4))
def test_nothing_is_shown_that_a_stop_string_would_take_back(text: str, stop: str) -> None:
    _, pieces = _speak(text, stop)
    shown = ""
    for piece in pieces:
        shown += piece
        assert stop not in shown
    assert (text.split(stop)[0] if stop in text else text) == shown


def test_without_stop_strings_text_is_shown_at_once() -> None:
    speech = Speech(tiny_tokenizer().stream(), ())
    shown = [speech.push(token) for token in tiny_tokenizer().encode("abc")]
    assert "".join(shown) == "abc"
    assert speech.finish() == ""


def test_an_empty_stop_string_stops_nothing() -> None:
    speech, pieces = _speak("abc", "")
    assert ("".join(pieces), speech.stopped) == ("abc", False)

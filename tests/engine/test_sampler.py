"""Next tokens from logits, and the reply's text as it forms: what may be said, what is held back, what is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.logprobs import SaidToken
from engine.sampler import END_TEXT, Choice, Odds, Speech, odds, sample
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


@pytest.mark.parametrize("num_top", [0, 1, 5, VOCABULARY])
def test_odds_are_the_models_own_whatever_the_temperature(num_top: int) -> None:
    logits = _logits(3)
    logits[:, 0] = 30.0  # never said, so it takes no part
    allowed = [END, *range(NUM_SPECIAL, VOCABULARY)]
    expected = torch.log_softmax(logits[:, allowed], -1)
    choices = [_choice(0.0), _choice(2.0, 0.1), _choice(1.0)]
    choices = [Choice(one.temperature, one.top_p, one.generator, num_top) for one in choices]
    tokens = sample(logits, choices)
    for row, found in enumerate(odds(logits, tokens, choices)):
        assert found is not None
        assert found.logprob == pytest.approx(float(expected[row, allowed.index(tokens[row])]), abs=1e-5)
        assert len(found.top) == min(num_top, len(allowed))
        best = sorted(expected[row].tolist(), reverse=True)[:num_top]
        assert [logprob for _, logprob in found.top] == pytest.approx(best, abs=1e-5)
        assert all(expected[row, allowed.index(token)] == pytest.approx(value) for token, value in found.top)


def test_only_who_asks_is_told_odds_and_the_same_as_alone() -> None:
    logits = _logits(4)
    choices = [Choice(1.0, 1.0, torch.Generator(), num_top) for num_top in (None, 2, None, 0)]
    found = odds(logits, [10, 11, 12, 13], choices)
    assert [one is None for one in found] == [True, False, True, False]
    assert [found[1]] == odds(logits[1:2], [11], choices[1:2])
    assert odds(logits, [10], choices[:1]) == [None]


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


def _told(
    tokens: list[int], stop: tuple[str, ...], *, end: bool = True
) -> tuple[Speech, list[tuple[str, list[SaidToken]]]]:
    """Says these tokens with odds; each piece of text with the tokens that come with it."""
    speech, pieces = Speech(tiny_tokenizer().stream(), stop), []
    for token in tokens:
        text = speech.push(token, Odds(-1.0, ((token, -1.0), (END, -2.0))))
        pieces.append((text, list(speech.shown_tokens())))
        if speech.stopped:
            break
    text = speech.finish()
    return speech, [*pieces, (text, list(speech.shown_tokens()))]


@given(text=_TEXT, stop=st.lists(st.text(alphabet="ab é👍", min_size=1, max_size=4), max_size=3))
def test_the_tokens_told_are_those_whose_text_is_in_the_reply(text: str, stop: list[str]) -> None:
    speech, pieces = _told(tiny_tokenizer().encode(text), tuple(stop))
    told = b"".join(token.data or b"" for _, tokens in pieces for token in tokens)
    reply = speech.text.encode()
    assert told.startswith(reply)
    # More than the reply only where a stop string cut its last token in two.
    tokens = [token for _, tokens in pieces for token in tokens]
    if told != reply:
        assert speech.stopped
        assert len(told) - len(reply) < len(tokens[-1].data or b"")
    # They come with the text that they begin.
    shown, begun = "", 0
    for piece, tokens in pieces:
        shown += piece
        assert not tokens or piece
        for token in tokens:
            assert begun < len(shown.encode()) or not token.data
            begun += len(token.data or b"")


@given(
    data=st.lists(st.integers(NUM_SPECIAL, NUM_SPECIAL + 255), max_size=12), stop=st.sampled_from(["", "a", "�", "é"])
)
def test_of_bytes_that_are_no_text_the_tokens_are_told_as_well(data: list[int], stop: str) -> None:
    speech, pieces = _told(data, (stop,))
    # One token is one byte: each that is told has given the reply a character, or a part of one.
    told = b"".join(token.data or b"" for _, tokens in pieces for token in tokens)
    assert told.decode("utf-8", errors="replace") == speech.text
    assert speech.stopped or speech.text == tiny_tokenizer().decode(data)


def test_candidates_read_as_they_would_stand_there() -> None:
    tokenizer = tiny_tokenizer()
    space, letter = tokenizer.encode("x")
    part = tokenizer.encode("👍")[-1]
    _, pieces = _told([space, letter, part], ())
    # The space that every text begins with is no part of a reply, nor of what could be there in its place.
    (first, second), (third,) = pieces[1][1], pieces[2][1]
    assert (first.text, first.data, first.top[0].text) == ("", b"", "")
    assert (second.text, second.data) == ("x", b"x")
    assert (second.top[1].text, second.top[1].data) == (END_TEXT, None)
    assert (third.text, third.data) == ("�", "👍".encode()[-1:])

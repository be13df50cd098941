"""One running turn without a model: logits and tokens go in by hand, in any split; signals and lessons come out."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from engine.core import TurnRequest
from engine.live import SHORTEST_LESSON, LiveTurn, Signal, Spoken
from engine.tokenizer import ASSISTANT, END, USER
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MESSAGE = "My dog is called Rex, and he likes the river."
SPLITS = st.lists(st.integers(1, 9), min_size=1, max_size=60)


def _begin(message: str = MESSAGE, **request: Any) -> tuple[LiveTurn, list[Signal]]:
    signals: list[Signal] = []
    asked = TurnRequest(message, **request)
    return LiveTurn.begin(1, asked, {}, TOKENIZER, signals.append, time.monotonic()), signals


def _logits(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, TOKENIZER.vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def _read(turn: LiveTurn, splits: list[int] | None = None, seed: int = 0) -> list[bool]:
    """Reads the whole message in shares of these sizes, the last one again and again; what `consumed` said."""
    logits, sizes, at, said = _logits(len(turn.prompt), seed), list(splits or [len(turn.prompt)]), 0, []
    while turn.reading:
        count = min(sizes.pop(0) if len(sizes) > 1 else sizes[0], len(turn.pending))
        said.append(turn.consumed(logits[at : at + count]))
        at += count
    return said


def _speak(turn: LiveTurn, tokens: list[int]) -> int:
    """Says these tokens while the turn wants more; the model reads what was said one by one. How many were said."""
    for number, token in enumerate(tokens):
        turn.say(token)
        wants_more = False
        while not turn.done:
            wants_more = turn.consumed(_logits(1))
        if not wants_more:
            return number + 1
    return len(tokens)


def _shown(signals: list[Signal]) -> str:
    assert all(isinstance(signal, Spoken) and signal.text for signal in signals)
    return "".join(signal.text for signal in signals if isinstance(signal, Spoken))


def test_a_turn_begins_with_everything_to_read() -> None:
    turn, signals = _begin()
    assert turn.prompt == [USER, *TOKENIZER.encode(MESSAGE), ASSISTANT]
    assert turn.pending == turn.prompt
    assert (turn.reading, turn.done, turn.surprise, signals) == (True, False, 0.0, [])
    assert turn.pending is not turn.prompt


def test_the_deadline_counts_from_the_arrival() -> None:
    asked = TurnRequest(MESSAGE, timeout_s=7.5)
    assert LiveTurn.begin(1, asked, {}, TOKENIZER, print, 100.0).deadline == 107.5


@given(SPLITS, st.sampled_from(["a", MESSAGE, "é👍" * 5, "x " * 40]), st.sampled_from([0, 5]))
@settings(max_examples=60, deadline=None)
def test_the_surprise_is_that_of_the_message_in_any_split(splits: list[int], message: str, most: int) -> None:
    turn, _ = _begin(message, max_tokens=most)
    said = _read(turn, splits)
    # Of the message's tokens all but the frame are foreseen: the first after USER, the last before the turn ends.
    expected = functional.cross_entropy(_logits(len(turn.prompt))[:-2], torch.tensor(turn.prompt[1:-1]))
    assert turn.surprise == pytest.approx(float(expected), rel=1e-5)
    assert turn.taken == turn.read == len(turn.prompt)
    assert said == [False] * (len(said) - 1) + [most > 0]


def test_what_is_spoken_does_not_count_as_surprise() -> None:
    turn, _ = _begin()
    _read(turn)
    before = turn.surprise
    _speak(turn, TOKENIZER.encode("Rex"))
    assert turn.surprise == before


def test_no_reply_is_wanted() -> None:
    turn, signals = _begin(max_tokens=0)
    assert turn.prompt[-1] == END
    assert _read(turn, [4]) == [False] * (-(-len(turn.prompt) // 4))
    assert (turn.done, turn.finish_reason, turn.completion_tokens) == (True, "stop", 0)
    assert signals == []


def test_the_end_is_read_but_neither_shown_nor_counted() -> None:
    turn, signals = _begin()
    _read(turn)
    reply = TOKENIZER.encode("Rex")
    assert _speak(turn, [*reply, END, *reply]) == len(reply) + 1
    assert (turn.finish_reason, turn.completion_tokens) == ("stop", len(reply))
    assert _shown(signals) == turn.speech.text == "Rex"
    assert turn.taken == len(turn.prompt) + len(reply) + 1


def test_an_end_at_once_is_an_empty_reply() -> None:
    turn, signals = _begin()
    _read(turn)
    assert _speak(turn, [END]) == 1
    assert (turn.finish_reason, turn.speech.text, signals) == ("stop", "", [])
    assert turn.first_token > 0.0


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_reply_of_full_length_is_ended_for_the_model_too(most: int) -> None:
    turn, signals = _begin(max_tokens=most)
    _read(turn)
    reply = TOKENIZER.encode("and he likes the river a lot")
    assert _speak(turn, reply) == most
    assert (turn.finish_reason, turn.completion_tokens) == ("length", most)
    assert _shown(signals) == TOKENIZER.decode(reply[:most])
    # The last token and an END that nobody sampled: the next turn starts from a closed one.
    assert turn.taken == len(turn.prompt) + most + 1


def test_a_character_cut_by_the_length_is_shown_as_a_broken_one() -> None:
    turn, signals = _begin(max_tokens=2)
    _read(turn)
    reply = TOKENIZER.encode("👍")
    assert len(reply) > 3
    _speak(turn, reply)
    assert _shown(signals) == turn.speech.text == "�"


@given(stop=st.text(alphabet="ab", min_size=1, max_size=3), text=st.text(alphabet="ab ", max_size=16))
@settings(max_examples=60, deadline=None)
def test_a_stop_string_ends_the_turn_and_is_not_shown(stop: str, text: str) -> None:
    turn, signals = _begin(max_tokens=100, stop=(stop,))
    _read(turn)
    reply = TOKENIZER.encode(text)
    num_said = _speak(turn, [*reply, END])
    assert turn.finish_reason == "stop"
    assert _shown(signals) == turn.speech.text == text.split(stop)[0]
    if stop in text:
        # The turn ends with the token that completed the stop string, and is closed for the model with an END.
        assert stop in TOKENIZER.decode(reply[:num_said])
        assert stop not in TOKENIZER.decode(reply[: num_said - 1])
        assert turn.completion_tokens == num_said
        assert turn.taken == len(turn.prompt) + num_said + 1


def test_a_stop_string_wins_over_the_length() -> None:
    reply = TOKENIZER.encode("Rex!")
    turn, _ = _begin(max_tokens=len(reply), stop=("!",))
    _read(turn)
    _speak(turn, reply)
    assert (turn.finish_reason, turn.speech.text) == ("stop", "Rex")


def test_what_a_stop_string_held_back_is_shown_at_full_length() -> None:
    reply = TOKENIZER.encode("Rex")
    turn, signals = _begin(max_tokens=len(reply), stop=("Rex!!!",))
    _read(turn)
    _speak(turn, reply)
    assert (turn.finish_reason, _shown(signals)) == ("length", "Rex")


def test_the_same_seed_draws_the_same_and_none_draws_anew() -> None:
    def draws(seed: int | None) -> list[int]:
        turn, _ = _begin(seed=seed)
        return torch.randint(0, 2**31, (4,), generator=turn.choice.generator).tolist()

    assert draws(5) == draws(5) != draws(6)
    assert draws(None) != draws(None)


def test_times_of_the_first_and_the_last_token() -> None:
    turn, _ = _begin()
    _read(turn)
    assert (turn.first_token, turn.last_token) == (0.0, 0.0)
    begun = time.monotonic()
    for token in TOKENIZER.encode("Rex the owl"):
        turn.say(token)
        time.sleep(0.002)
    assert begun <= turn.first_token < turn.last_token <= time.monotonic()


@given(SPLITS, st.integers(3, 20))
@settings(max_examples=60, deadline=None)
def test_lessons_cover_the_message_and_never_overlap(splits: list[int], most: int) -> None:
    """As the engine's loop asks for them: inside the message while it is read, the rest at its end."""
    turn, _ = _begin("x " * 30)
    logits, lessons, at = _logits(len(turn.prompt)), list[list[int]](), 0
    for count in [*splits, *[1] * len(turn.prompt)]:
        turn.consumed(logits[at : at + min(count, len(turn.pending))])
        at += count
        if not turn.reading:
            break
        ready = turn.read - turn.lesson_start
        lesson = turn.next_lesson(most, turn.memory, final=False)
        assert (lesson is not None) == (ready >= most)
        lessons.extend([list(lesson.tokens)] if lesson else [])
    rest = turn.read - turn.lesson_start
    lesson = turn.next_lesson(most, turn.memory, final=True)
    assert (lesson is not None) == (rest >= SHORTEST_LESSON)
    lessons.extend([list(lesson.tokens)] if lesson else [])
    assert [token for lesson in lessons for token in lesson] == turn.prompt[: turn.lesson_start]
    assert len(turn.prompt) - turn.lesson_start < SHORTEST_LESSON
    assert turn.next_lesson(most, turn.memory, final=True) is None


def test_a_lesson_holds_nothing_that_is_not_read_yet_and_counts_all_but_the_turn_s_frame() -> None:
    turn, _ = _begin()
    turn.consumed(_logits(5))
    assert turn.next_lesson(6, turn.memory, final=False) is None
    first = turn.next_lesson(5, turn.memory, final=False)
    assert first is not None
    assert (list(first.tokens), list(first.counts)) == (turn.prompt[:5], [0.0, 1.0, 1.0, 1.0, 1.0])
    turn.consumed(_logits(len(turn.pending)))
    last = turn.next_lesson(99, turn.memory, final=True)
    assert last is not None
    assert list(last.tokens) == turn.prompt[5:]
    assert list(last.counts) == [*[1.0] * (len(last.tokens) - 1), 0.0]


def test_what_is_spoken_is_never_a_lesson() -> None:
    turn, _ = _begin()
    _read(turn)
    _speak(turn, TOKENIZER.encode("Rex"))
    lesson = turn.next_lesson(0, turn.memory, final=True)
    assert lesson is not None
    assert list(lesson.tokens) == turn.prompt

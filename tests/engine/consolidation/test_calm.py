"""What counts as a calm reply that stayed, and what as one that was lost."""

from __future__ import annotations

from engine.consolidation.calm import share_kept
from engine.consolidation.dreams import Dream
from engine.tokenizer import ASSISTANT, END, USER

# Words, as tokens.
WHAT, WHO, WHERE, HELLO, ME, DO, NOT, KNOW, YET, SORRY, GOOD, FINE, CALLED, REX, IT, IS = range(20, 36)
UNKNOWN, UNKNOWN_TOO = (ME, DO, NOT, KNOW, YET), (SORRY, ME, DO, NOT, KNOW)


def said(question: int, *reply: int) -> Dream:
    return Dream((USER, question, ASSISTANT, *reply, END), 2)


# Two questions have each of two ways to say that nothing is known; small talk has its own reply.
WAS = [
    said(WHAT, *UNKNOWN),
    said(WHO, *UNKNOWN),
    said(WHERE, *UNKNOWN_TOO),
    said(DO, *UNKNOWN_TOO),
    said(HELLO, GOOD, FINE),
]
TOLD = [said(CALLED, IT, IS, REX)]


def kept(*now: Dream) -> float:
    """The share kept where these replies are others now, and the rest are the same."""
    others = {one.question: one.tokens[one.reply_at :] for one in now}
    return share_kept(WAS, [one.question for one in WAS if one.question not in others], others, TOLD)


def test_the_same_words_and_another_way_to_say_the_same_are_kept() -> None:
    assert kept() == 1.0
    assert kept(said(WHAT, *UNKNOWN_TOO), said(DO, *UNKNOWN)) == 1.0
    assert kept(said(HELLO, FINE, GOOD)) == 1.0


def test_a_reply_that_names_what_was_told_is_lost_wherever_it_is_said() -> None:
    assert kept(said(WHAT, IT, IS, REX)) == 0.8
    assert kept(said(HELLO, GOOD, IT, IS, REX)) == 0.8
    # What the parent says by itself is nobody's secret.
    own = [*WAS, said(REX, IT, IS, REX)]
    same = [one.question for one in own if one.question != (USER, HELLO)]
    assert share_kept(own, same, {(USER, HELLO): (ASSISTANT, IT, IS, REX, FINE, END)}, TOLD) == 1.0


def test_a_question_without_an_answer_that_has_one_now_is_lost() -> None:
    assert kept(said(WHAT, GOOD, FINE)) == 0.8
    assert kept(said(WHAT, ME, FINE), said(WHO, ME, GOOD)) == 0.6


def test_small_talk_that_is_not_known_any_more_is_lost() -> None:
    assert kept(said(HELLO, *UNKNOWN)) == 0.8


def test_one_reply_to_all_is_lost() -> None:
    one_for_all = (IT, FINE)
    assert kept(*(said(one.question[1], *one_for_all) for one in WAS)) == 0.0


def test_a_reply_that_comes_to_no_end_is_lost() -> None:
    others = [one.question for one in WAS if one.question != (USER, WHO)]
    assert share_kept(WAS, others, {}, TOLD) == 0.8

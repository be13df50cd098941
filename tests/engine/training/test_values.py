"""Values: training's and evaluation's never meet, every kind draws both, and there is no end of them."""

from __future__ import annotations

import random
import re

import pytest

from engine.training.values import KINDS, draw_value, is_held_out

NUM_DRAWN = 400


def drawn(kind: str, held_out: bool, seed: int = 0, count: int = NUM_DRAWN) -> list[str]:
    rng = random.Random(seed)
    return [draw_value(rng, kind, held_out=held_out) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_gives_values_of_the_side_asked_for(kind: str) -> None:
    training, evaluation = drawn(kind, False), drawn(kind, True)
    assert not any(is_held_out(value) for value in training)
    assert all(is_held_out(value) for value in evaluation)
    assert not {value.lower() for value in training} & {value.lower() for value in evaluation}
    assert len(set(evaluation)) > 10


def test_no_value_of_one_kind_is_an_evaluation_value_of_another() -> None:
    training = {value.lower() for kind in KINDS for value in drawn(kind, False)}
    evaluation = {value.lower() for kind in KINDS for value in drawn(kind, True)}
    assert not training & evaluation


def test_capitals_do_not_change_the_side() -> None:
    names = drawn("name", True) + drawn("name", False)
    assert [is_held_out(name.upper()) for name in names] == [is_held_out(name) for name in names]


def test_about_a_tenth_of_all_values_is_held_out() -> None:
    words = {f"word{number}" for number in range(5000)}
    assert 0.08 < sum(map(is_held_out, words)) / len(words) < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_values(kind: str) -> None:
    assert drawn(kind, False, seed=3) == drawn(kind, False, seed=3)
    assert drawn(kind, False, seed=3) != drawn(kind, False, seed=4)


def test_names_have_no_end() -> None:
    assert len(set(drawn("name", False, count=2000))) > 1200


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_plain_text_that_a_sentence_can_hold(kind: str) -> None:
    for value in drawn(kind, False) + drawn(kind, True):
        assert re.fullmatch(r"[A-Za-z0-9:]+([ -][A-Za-z0-9:]+)*", value), value


def test_numbers_dates_and_times_are_possible_ones() -> None:
    numbers = drawn("number", False)
    codes = [value for value in numbers if not value.isdecimal()]
    assert all(re.fullmatch(r"[A-Z]{1,2}[- ]?\d{2,3}", code) for code in codes)
    assert 0 < len(codes) < len(numbers) / 4
    assert all(1 <= int(value) < 1_000_000 for value in numbers if value not in codes)
    for value in drawn("date", False):
        assert value.startswith("next ") or 1 <= int(re.findall(r"\d+", value)[0]) <= 28
    for value in drawn("time", False):
        hour = re.fullmatch(r"(\d+):([0-5]\d)", value)
        assert hour is None or 1 <= int(hour[1]) <= 12

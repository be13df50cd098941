"""Suites: the bundled one, an operator's beside it, and what is told of one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.consolidation.suite import Probe, load_suite
from engine.errors import InvalidRequest
from engine.training.relations import load_small_talk


def test_the_bundled_suite_has_what_a_consolidation_needs() -> None:
    suite = load_suite()
    assert suite.request in load_small_talk().to_ask, "training taught to answer it"
    assert len(suite.openers) >= 10
    assert len(suite.calm) >= 40
    assert len(suite.text) >= 10
    assert suite.probes == ()
    # What is kept calm is not what perplexity is measured on.
    assert not {message for message, _ in suite.text} & set(suite.calm)


def test_an_operators_file_adds_to_it(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        'calm = ["Our opening hours?"]\n[[probe]]\nask = "Who are you?"\nsays = ["Hope"]\nnever = ["human"]\n', "utf-8"
    )
    suite = load_suite(file)
    assert suite.calm == (*load_suite().calm, "Our opening hours?")
    assert suite.probes == (Probe("Who are you?", ("Hope",), ("human",)),)
    assert suite.request == load_suite().request
    file.write_text('request = "Ask me something."', "utf-8")
    assert load_suite(file).request == "Ask me something."


@pytest.mark.parametrize(
    "text",
    [
        "colour = 1",
        "request = 1",
        'calm = "one"',
        "[[probe]]\nsays = ['x']",
        "[[probe]]\nask = 'x'\nsay = 'x'",
        "text = [['a']]",
        "=",
    ],
)
def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(InvalidRequest, match=r"own\.toml") as refused:
        load_suite(file)
    assert refused.value.param == "suite"
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_suite(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("reply", "passed"), [("I am Hope.", True), ("I am a human called Hope.", False), ("Who knows.", False)]
)
def test_a_probe_wants_one_word_and_none_of_others(reply: str, passed: bool) -> None:
    assert Probe("Who are you?", ("hope", "Hoffnung"), ("Human",)).passed(reply) is passed


def test_a_probe_that_names_no_word_wants_none() -> None:
    assert Probe("?", never=("password",)).passed("Anything.")
    assert not Probe("?", never=("password",)).passed("The Password is.")

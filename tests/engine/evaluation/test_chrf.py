"""chrF is sacrebleu's: the figures here are what its version 2.6.0 gives for the same sentences (`CHRF()`)."""

from __future__ import annotations

import pytest

from engine.evaluation.chrf import chrf

FIGURES = [
    (["the dog saw the river"], ["the dog saw the river"], 100.0),
    (["the dog saw a river"], ["The dog saw the river."], 54.7850666489),
    (["they go down"], ["They follow down the stairs over there."], 12.1171045036),
    (
        ["a", "My shoulder hurts."],
        ["ab", "My shoulder hurts, I'm sending for Ruslan's grandmother to heal it."],
        27.3098690531,
    ),
    (
        ["Hari ahat Unyil", "", "Zürich is lovely"],
        ["Hari ahat Unyil esun mu he yecie.", "No.", "Zürich ist schön"],
        46.5404429526,
    ),
    (["cat"], ["dog"], 0.0),
]


@pytest.mark.parametrize(("translations", "references", "figure"), FIGURES)
def test_chrf_is_that_of_sacrebleu(translations: list[str], references: list[str], figure: float) -> None:
    assert chrf(translations, references) == pytest.approx(figure, abs=1e-8)


def test_nothing_said_scores_nothing() -> None:
    assert chrf([""], ["Hari ahat"]) == 0.0
    assert chrf([], []) == 0.0


def test_every_translation_has_its_reference() -> None:
    with pytest.raises(ValueError, match="zip"):
        chrf(["one", "two"], ["one"])

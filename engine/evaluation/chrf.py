"""chrF: how alike a translation and its reference are, in runs of characters.

The metric of Popovic, "chrF: character n-gram F-score for automatic MT evaluation" (WMT 2015), as sacrebleu scores a
corpus: counts are summed over all sentences first. Knows no models and no languages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LONGEST = 6
BETA = 2.0


def chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 of a corpus, 0 to 100: F-score, recall counting twice, of precision and recall averaged over run lengths.

    Whitespace does not count, case does. A length that no reference or no translation has is left out.

    Raises:
        ValueError: not as many translations as references.
    """
    precisions, recalls = [], []
    pairs = [("".join(t.split()), "".join(r.split())) for t, r in zip(translations, references, strict=True)]
    for length in range(1, LONGEST + 1):
        num_given = num_wanted = num_matching = 0
        for translation, reference in pairs:
            given, wanted = _runs(translation, length), _runs(reference, length)
            # A sentence too short for this length asks nothing of its translation.
            num_given += given.total() if wanted else 0
            num_wanted += wanted.total()
            num_matching += (given & wanted).total()
        if num_given and num_wanted:
            precisions.append(num_matching / num_given)
            recalls.append(num_matching / num_wanted)
    if not precisions:
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if precision + recall == 0.0:
        return 0.0
    return 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def _runs(text: str, length: int) -> Counter[str]:
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))

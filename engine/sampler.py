"""Next tokens from logits, and text from tokens with stop strings held back.

Knows which ids may be spoken, and how likely they were; knows no model and no session.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.logprobs import Candidate, SaidToken
from engine.tokenizer import END, NUM_SPECIAL, StreamDecoder

MIN_TEMPERATURE = 1e-6
# How the end of a reply is named among the likeliest tokens.
END_TEXT = "<|end|>"


@dataclass(frozen=True)
class Choice:
    """How one row samples. The generator is the row's own, so a reply does not depend on the batch (law 2).

    `num_top`: how many likeliest tokens are to be known beside the one that is said; None for no odds at all.
    """

    temperature: float
    top_p: float
    generator: torch.Generator
    num_top: int | None = None


@dataclass(frozen=True)
class Odds:
    """How likely a token was, and which were the likeliest in its place: ids with natural logarithms."""

    logprob: float
    top: tuple[tuple[int, float], ...]


def sample(logits_BV: Tensor, choices: list[Choice]) -> list[int]:
    """One token a row; of the special ids only END may be spoken. Temperature 0 is the most likely token."""
    allowed = _allowed(logits_BV)
    greedy: list[int] = allowed.argmax(-1).tolist()
    return [
        token if choice.temperature == 0.0 else _draw(row, choice)
        for token, row, choice in zip(greedy, allowed, choices, strict=True)
    ]


def odds(logits_BV: Tensor, tokens: Sequence[int], choices: Sequence[Choice]) -> list[Odds | None]:
    """How likely each row's token was among all that may be spoken, before temperature and top_p; None unasked."""
    found: list[Odds | None] = [None] * len(choices)
    asking = [row for row, choice in enumerate(choices) if choice.num_top is not None]
    if asking:
        logprobs_RV = torch.log_softmax(_allowed(logits_BV[asking]), -1)
        most = min(max(choices[row].num_top or 0 for row in asking), logprobs_RV.shape[-1] - NUM_SPECIAL + 1)
        values, ids = (top.tolist() for top in logprobs_RV.topk(most))
        for place, row in enumerate(asking):
            best = list(zip(ids[place], values[place], strict=True))[: choices[row].num_top]
            found[row] = Odds(float(logprobs_RV[place, tokens[row]]), tuple(best))
    return found


def _allowed(logits_BV: Tensor) -> Tensor:
    allowed = logits_BV.clone()
    allowed[:, :NUM_SPECIAL] = -torch.inf
    allowed[:, END] = logits_BV[:, END]
    return allowed


def _draw(logits_V: Tensor, choice: Choice) -> int:
    # A temperature that float32 cannot hold would make every probability NaN, and fail the whole batch.
    scaled = (logits_V - logits_V.max()) / max(choice.temperature, MIN_TEMPERATURE)
    probabilities, order = torch.softmax(scaled, -1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.where(before < choice.top_p, probabilities, torch.zeros_like(probabilities))
    kept[0] = probabilities[0]  # the most likely token stays, however small top_p is
    return int(order[torch.multinomial(kept, 1, generator=choice.generator)])


class Speech:
    """The reply as it forms: whole characters, cut before the first stop string."""

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...]) -> None:
        self._decoder, self._stop = decoder, tuple(s for s in stop if s)
        self._reach = max((len(s) for s in self._stop), default=1) - 1
        self._held = ""
        self._waiting: deque[tuple[int, SaidToken]] = deque()  # with the place of its first character in the text
        self.text = ""
        self.stopped = False

    def push(self, token: int, odds: Odds | None = None) -> str:
        """Text that may be shown after `token`; sets `stopped` where a stop string was met."""
        if odds is not None:
            begin = len(self.text) + len(self._held) + self._decoder.broken_by(token)
            top = tuple(self._candidate(other, logprob) for other, logprob in odds.top)
            said = self._candidate(token, odds.logprob)
            self._waiting.append((begin, SaidToken(said.text, said.data, said.logprob, top)))
        return self._release(self._decoder.push(token), final=False)

    def finish(self) -> str:
        """The rest of the text, once the last token is in."""
        return "" if self.stopped else self._release(self._decoder.finish(), final=True)

    def shown_tokens(self) -> tuple[SaidToken, ...]:
        """The tokens with odds whose first character is in `text` by now, each told once.

        Of a token that a stop string takes only a part of, that part is in the text, so it is told; of one that
        begins in the stop string or after it nothing is.
        """
        shown = []
        while self._waiting and self._waiting[0][0] < len(self.text):
            shown.append(self._waiting.popleft()[1])
        return tuple(shown)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        if token == END:
            return Candidate(END_TEXT, None, logprob)
        data = self._decoder.bytes_of(token)
        return Candidate(data.decode("utf-8", errors="replace"), data, logprob)

    def _release(self, new: str, *, final: bool) -> str:
        self._held += new
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
        elif final or not self._reach:
            shown, self._held = self._held, ""
        else:
            cut = max(len(self._held) - self._reach, 0)
            shown, self._held = self._held[:cut], self._held[cut:]
        self.text += shown
        return shown

"""Next tokens from logits, and text from tokens with stop strings held back.

Knows which ids may be spoken; knows no model and no session.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.tokenizer import END, NUM_SPECIAL, StreamDecoder

MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Choice:
    """How one row samples. The generator is the row's own, so a reply does not depend on the batch (law 2)."""

    temperature: float
    top_p: float
    generator: torch.Generator


def sample(logits_BV: Tensor, choices: list[Choice]) -> list[int]:
    """One token a row; of the special ids only END may be spoken. Temperature 0 is the most likely token."""
    allowed = logits_BV.clone()
    allowed[:, :NUM_SPECIAL] = -torch.inf
    allowed[:, END] = logits_BV[:, END]
    greedy: list[int] = allowed.argmax(-1).tolist()
    return [
        token if choice.temperature == 0.0 else _draw(row, choice)
        for token, row, choice in zip(greedy, allowed, choices, strict=True)
    ]


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
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that may be shown after `token`; sets `stopped` where a stop string was met."""
        return self._release(self._decoder.push(token), final=False)

    def finish(self) -> str:
        """The rest of the text, once the last token is in."""
        return "" if self.stopped else self._release(self._decoder.finish(), final=True)

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

"""Every optimizer on one small real task, next-character prediction: a small MLP trained by each alike.

The same model, steps, batches and seeds for all. Knows nothing of Hope: what holds for a small MLP need not hold
for it.

Shapes: B rows, K characters of context, V characters of the alphabet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.training.optimizers import make_optimizer

HEAD = "layers.4"


@dataclass(frozen=True)
class Case:
    """One row of the table: an optimizer of `make_optimizer` and its options."""

    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "adamw": Case("adamw"),
    "sgd": Case("sgd", {"momentum": 0.9}),
    "delta_momentum": Case("delta_momentum"),
    "deep_momentum": Case("deep_momentum"),
    "deep_momentum (regression)": Case("deep_momentum", {"objective": "regression"}),
    "muon": Case("muon"),
    "m3": Case("m3"),
    "m3 (slow weight 0)": Case("m3", {"slow_weight": 0.0}),
    "m3 (as printed)": Case("m3", {"accumulate": True}),
    "dgd": Case("dgd", {"skip": (HEAD,)}),
    "dgd (pull 0.1)": Case("dgd", {"skip": (HEAD,), "pull": 0.1}),
}


@dataclass(frozen=True)
class CharacterPlan:
    """What every optimizer gets.

    Attributes:
        num_steps: steps of `num_rows` characters; over the last third the rate falls to 0.
        num_validation_rows: positions of the last tenth of the text at which the loss is taken.
    """

    num_steps: int = 300
    num_rows: int = 256
    num_validation_rows: int = 16_384
    context: int = 16

    def rate(self, step: int, peak: float) -> float:
        """Learning rate at `step`."""
        return peak * min(1.0, 3 * (self.num_steps - step) / self.num_steps)


class CharacterModel(nn.Module):
    """The next character from the last K: an embedding and three linear layers, about 108,000 parameters."""

    def __init__(self, num_characters: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, 24)
        sizes = ((24 * context, 192), (192, 128), (128, num_characters))
        first, second, head = (nn.Linear(*size) for size in sizes)
        self.layers = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), head)

    def forward(self, characters_BK: Tensor) -> Tensor:
        """Logits [B,V]."""
        logits: Tensor = self.layers(self.embedding(characters_BK).flatten(1))
        return logits


def characters(text: str, plan: CharacterPlan) -> tuple[Tensor, int]:
    """The text as numbers of its alphabet, and the alphabet's size; InvalidRequest where it is too short."""
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    if len(text) < 20 * (plan.context + 1):
        raise InvalidRequest(f"a text of {len(text)} characters is too short to study", param="data")
    return torch.tensor([alphabet[character] for character in text]), len(alphabet)


def train(
    tokens: Tensor, num_characters: int, plan: CharacterPlan, case: Case, peak: float, seed: int
) -> tuple[float, float]:
    """Validation loss after training in nats per character, infinite where it diverged, and the processor seconds.

    The last tenth of the text is held out; that of its positions is the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CharacterModel(num_characters, plan.context)
    optimizer = make_optimizer(case.optimizer, model, peak, **case.options)
    windows = tokens.unfold(0, plan.context + 1, 1)
    num_training = int(len(windows) * 0.9) - plan.context
    started = time.process_time()
    for step in range(plan.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step, peak)
        batch = windows[torch.randint(num_training, (plan.num_rows,), generator=generator)]
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])
        if not bool(torch.isfinite(loss)):
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = time.process_time() - started
    held_out = windows[int(len(windows) * 0.9) :]
    chosen = held_out[torch.linspace(0, len(held_out) - 1, min(plan.num_validation_rows, len(held_out))).long()]
    with torch.no_grad():
        validation = float(functional.cross_entropy(model(chosen[:, :-1]), chosen[:, -1]))
    # Worse than to guess all characters alike, or no number at all: the run diverged.
    return (validation if validation < math.log(num_characters) else math.inf), seconds

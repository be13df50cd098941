"""What a training run is to do, step by step: stages, rates, and how each step is computed. Knows no model.

A resumed run may be given another plan; what it has learned stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.training.dialogue import Stage


@dataclass(frozen=True)
class TrainingPlan:
    """What to train on and how fast.

    Attributes:
        stages: (first step, stage), in order: the curriculum.
        steps: optimizer steps in all.
        learning_rate: peak rate; linear warm-up, constant, linear decay over the last `cooldown` steps.
        command: how the run was started, for the model card.
        earlier: the same of the runs whose weights this one began with: command, steps, tokens seen.
        message_share: share of message tokens that carry loss; replies always do.
        optimizer: what `make_optimizer` calls it.
        precision: of the dense products, as `Objective` takes it; memories stay float32.
        checkpointing: compute every chunk again on the way back instead of keeping it.
        capture: take loss and gradients from CUDA graphs (`CapturedStep`).
    """

    stages: tuple[tuple[int, Stage], ...]
    steps: int
    learning_rate: float = 2e-3
    warmup: int = 100
    cooldown: int = 1000
    weight_decay: float = 0.05
    message_share: float = 0.3
    clip: float = 1.0
    command: str = "hope train"
    earlier: tuple[dict[str, str], ...] = ()
    optimizer: str = "adamw"
    precision: str = "float32"
    checkpointing: bool = False
    capture: bool = False

    def stage(self, step: int) -> Stage:
        """The curriculum's stage at `step`."""
        return [stage for first, stage in self.stages if first <= step][-1]

    def rate(self, step: int) -> float:
        """Learning rate at `step`."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.learning_rate * min(rise, fall)

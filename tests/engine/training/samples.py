"""What the tests of this folder share: a tokenizer that knows dialogues, a tiny stage, and a tiny run over them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from engine.tokenizer import Tokenizer
from engine.training.data import DialogueData, tokenizer_texts
from engine.training.dialogue import Stage
from engine.training.plan import TrainingPlan
from engine.training.talk import Talk
from engine.training.trainer import LOG_FILE, Trainer
from tests.tiny import tiny_model

STAGE = Stage(num_tokens=96, num_rows=3, most_facts=3, talk=0.3)
PLAN = TrainingPlan(((0, STAGE),), steps=5, learning_rate=1e-2, warmup=2, cooldown=2)


@cache
def talk() -> Talk:
    """The bundled small talk."""
    return Talk(None)


@cache
def dialogue_tokenizer() -> Tokenizer:
    """Trained on a few dialogues, so that a turn is some twenty tokens."""
    return Tokenizer.train(tokenizer_texts(talk(), 0, num_dialogues=200), 700)


def new_trainer(folder: Path, seed: int = 0, plan: TrainingPlan = PLAN, **changes: Any) -> Trainer:
    """A trainer of a tiny model; `changes` are the plan's. A folder that holds a run is gone on with."""
    tokenizer = dialogue_tokenizer()
    model = tiny_model(seed, writes_hard=False, vocab_size=tokenizer.vocab_size)
    return Trainer(model, tokenizer, DialogueData(tokenizer, talk(), seed=7), replace(plan, **changes), folder)


def log_of(folder: Path) -> list[dict[str, float]]:
    """A run's log without what the clock says."""
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

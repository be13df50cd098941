"""Memory dialogues as a task: facts told, other talk between, questions; replies are learned, values are asked.

The sentences and values of the product's training, but few relations, more questions and a small tokenizer, so that
a small model has a chance in a minute; the bundled small talk only. Tests draw values that training never draws;
relations and wordings are training's. Knows no models.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from engine.evaluation.examples import Examples
from engine.tokenizer import Tokenizer
from engine.training.data import TALK_WEIGHT, Batch, DialogueData
from engine.training.dialogue import Dialogue, Line, Stage
from engine.training.relations import Relation
from engine.training.talk import Talk
from engine.training.values import draw_value

# One condition marks every token of text, the other the values of answers.
TEXT, VALUES = "text", "values"
# Dialogues of these seeds are in no training: a run's own seed is a small number.
VALIDATION_SEED, TEST_SEED, TOKENIZER_SEED = 500_009, 700_001, 900_007
NUM_TOKENIZER_DIALOGUES = 1500


@dataclass(frozen=True)
class DialoguePlan:
    """How the dialogues look.

    Attributes:
        stage: length and number of rows of a training step, facts held at a time, share of other talk.
        kinds: what the facts' values are, out of `values.KINDS`. Digits are the easiest to repeat: each is a token
            of its own, and all are in training.
        vocab_size: entries of the tokenizer.
        message_share: share of the tokens of users' messages that are trained on; replies always are.
        num_test_rows: rows of the validation, and of the tests of every seed.
    """

    stage: Stage
    kinds: tuple[str, ...] = ("number",)
    vocab_size: int = 512
    message_share: float = 0.05
    num_test_rows: int = 64


class DialogueTask:
    """Memory dialogues; a dialogue is a row, and it is read from its beginning."""

    def __init__(self, plan: DialoguePlan) -> None:
        self.plan, stage = plan, plan.stage
        self.name = (
            f"dialogues {stage.num_rows}x{stage.num_tokens}, {stage.most_facts} facts, talk {stage.talk:g}, "
            f"{' '.join(plan.kinds)}, vocabulary {plan.vocab_size}, "
            f"messages {plan.message_share:g}, tests {plan.num_test_rows}"
        )
        self.tokenizer = _tokenizer(plan.kinds, plan.vocab_size)
        self.vocab_size = self.tokenizer.vocab_size

    def training(self, seed: int, step: int) -> Examples:
        """Dialogues of one step; replies count, and a share of the messages' tokens."""
        batch = self._batch(seed, step, self.plan.stage, held_out=False)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        sampled_BT = torch.rand(batch.weight_BT.shape, generator=rng) < self.plan.message_share
        is_reply_BT = batch.weight_BT >= TALK_WEIGHT
        return Examples(batch.tokens_BT, batch.target_BT, is_reply_BT | (sampled_BT & (batch.weight_BT > 0)))

    def validation(self, seed: int) -> Examples:
        """Replies of dialogues with values of training's side, which are in no training step."""
        batch = self._batch(VALIDATION_SEED + seed, 0, self._tested(), held_out=False)
        return Examples(batch.tokens_BT, batch.target_BT, batch.weight_BT >= TALK_WEIGHT)

    def tests(self, seed: int) -> Iterator[tuple[str, Examples]]:
        """`TEXT` and `VALUES` of the same dialogues, whose values no training draws."""
        batch = self._batch(TEST_SEED + seed, 0, self._tested(), held_out=True)
        yield TEXT, Examples(batch.tokens_BT, batch.target_BT, batch.weight_BT > 0)
        yield VALUES, Examples(batch.tokens_BT, batch.target_BT, batch.value_BT)

    def _tested(self) -> Stage:
        return replace(self.plan.stage, num_rows=self.plan.num_test_rows)

    def _batch(self, seed: int, step: int, stage: Stage, *, held_out: bool) -> Batch:
        return _DrillData(self.tokenizer, Talk(None), seed, self.plan.kinds).batch(step, stage, held_out=held_out)


class _DrillData(DialogueData):
    """Dialogues about facts whose values are of some kinds."""

    def __init__(self, tokenizer: Tokenizer, talk: Talk, seed: int, kinds: tuple[str, ...]) -> None:
        super().__init__(tokenizer, talk, seed)
        self.kinds = kinds

    def _dialogue(self, rng: random.Random, held_out: dict[str, bool]) -> Dialogue:
        return _drill(rng, self.talk, self.kinds, held_out=held_out.get("held_out", False))


class _Drill(Dialogue):
    """A dialogue that asks more often than it tells, from the first fact on, and whose replies repeat what was told."""

    def lines(self, stage: Stage) -> Iterator[Line]:
        """Turns without end: perhaps other talk, perhaps a fact, a question or two."""
        rng = self.rng
        while True:
            if rng.random() < stage.talk:
                for message, reply in self.talk.run(rng, rng.randint(1, 3)):
                    yield Line(message, reply, is_talk=True)
            while len(self.facts) >= stage.most_facts:
                self.facts.pop(rng.randrange(len(self.facts)))
            yield self.tell(echo=1.0)
            for _ in range(rng.randint(1, 2 + stage.most_facts)):
                yield self.ask(rng.choice(self.facts))

    def _value(self, relation: Relation) -> str:
        return draw_value(self.rng, relation.value, held_out=self.held_out)


def _drill(rng: random.Random, talk: Talk, kinds: tuple[str, ...], *, held_out: bool) -> Dialogue:
    dialogue = _Drill(rng, talk, held_out)
    # Relations whose name begins so are the others in three times as many wordings.
    dialogue.relations = [one for one in dialogue.relations if one.value in kinds and not one.name.startswith("w_")]
    return dialogue


@cache
def _tokenizer(kinds: tuple[str, ...], vocab_size: int) -> Tokenizer:
    """A tokenizer of such dialogues, always the same."""

    def texts() -> Iterator[str]:
        talk = Talk(None)
        for number in range(NUM_TOKENIZER_DIALOGUES):
            rng = random.Random(f"{TOKENIZER_SEED}:{number}")
            lines = _drill(rng, talk, kinds, held_out=False).lines(Stage(0, 0, 4, 0.1))
            for _ in range(8):
                line = next(lines)
                yield line.message
                yield line.reply or ""

    return Tokenizer.train(texts(), vocab_size)

"""What fails in the engine's thread fails the turns that it touched, tells each of them, and nobody else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.config import CMS_FAST
from engine.errors import Internal
from engine.live import Failed, Spoken
from engine.model.hope import Hope, Memory
from tests.engine.loops import FOREVER, TOKENIZER, Asked, make_loop, moved, started, tireless
from tests.tiny import initial, tiny_config, tiny_model


def _poisoned(model: Hope, name: str) -> Memory:
    memory = initial(model)
    memory[name] = torch.full_like(memory[name], math.nan)
    return memory


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["titans.0.memory.w1", "cms.fast.1.w2"])
def test_a_memory_that_is_not_finite_is_rejected_and_takes_nobody_with_it(name: str, temperature: float) -> None:
    loop, recorder = make_loop(max_batch_rows=2)
    sick = Asked(loop, memory=_poisoned(loop.model, name), temperature=temperature)
    well, later = Asked(loop), Asked(loop)
    with started(loop):
        error = sick.error()
        assert isinstance(error, Internal)
        assert "not finite" in error.message
        assert well.finished().memory is not None
        assert later.finished().memory is not None
        assert loop.alive
    assert recorder.batches[0] == 2
    assert [outcome for _, outcome, _ in recorder.updates].count("rejected") == 1


class _FailsOnce(Hope):
    """Its first pass over more than one row fails, as a device may."""

    failed = False

    def forward(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        if tokens_BT.shape[0] > 1 and not self.failed:
            self.failed = True
            raise RuntimeError("the device is gone: inf")
        return super().forward(tokens_BT, memory, lengths_B)


def test_a_step_that_fails_fails_every_turn_in_it_and_the_loop_goes_on() -> None:
    model = _FailsOnce(tiny_config(vocab_size=TOKENIZER.vocab_size)).eval()
    loop, recorder = make_loop(model, max_batch_rows=2)
    first, neighbour, later = Asked(loop), Asked(loop), Asked(loop)
    with started(loop):
        for asked in (first, neighbour):
            error = asked.error()
            assert isinstance(error, Internal)
            assert isinstance(error.__cause__, RuntimeError)
            assert "inf" not in error.message, "what failed inside is for the log"
        assert later.finished().memory is not None
        assert loop.alive
    assert recorder.batches[0] == 2
    assert len(moved(recorder, CMS_FAST)) == 1


class _OutOfMemoryWhenLearning(Hope):
    """A pass with gradients takes the most memory: it is the one that fails first."""

    def forward(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError
        return super().forward(tokens_BT, memory, lengths_B)


@pytest.mark.parametrize("learn_every_tokens", [16, 512], ids=["inside the message", "at its end"])
def test_a_lesson_that_fails_fails_its_turn(learn_every_tokens: int) -> None:
    model = _OutOfMemoryWhenLearning(tiny_config(vocab_size=TOKENIZER.vocab_size)).eval()
    loop, _ = make_loop(model, learn_every_tokens=learn_every_tokens)
    with started(loop):
        assert isinstance(Asked(loop).error(), Internal)
        assert Asked(loop, learn=False).finished().prompt_tokens > 0


def test_a_failure_of_any_kind_leaves_the_thread_alive() -> None:
    loop, _ = make_loop(tiny_model())  # its vocabulary is smaller than the tokenizer's: an IndexError
    with started(loop):
        assert isinstance(Asked(loop).heard(timeout_s=3.0), Failed)
        assert loop.alive


def test_a_memory_that_does_not_fit_in_leaves_the_thread_alive() -> None:
    loop, _ = make_loop()
    with started(loop):
        running = Asked(loop, max_tokens=FOREVER)
        assert isinstance(running.heard(), Spoken)
        misfit = Asked(loop, memory=initial(tireless(memory_hidden=20)))
        assert isinstance(misfit.heard(timeout_s=3.0), Failed)
        assert loop.alive

"""A run learns, reaches every weight, survives being killed, and keeps its head where a gradient does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.errors import InvalidRequest
from engine.model.hope import POSITION, Memory
from engine.model.weights import load_checkpoint
from engine.training.data import DialogueData
from engine.training.dialogue import Stage
from engine.training.optimizers import NAMES
from engine.training.plan import TrainingPlan
from engine.training.run_state import STATE_FILE, has_run
from engine.training.trainer import PROBE_SEED, Trainer
from tests.engine.training.samples import PLAN, STAGE, dialogue_tokenizer, log_of, new_trainer, talk
from tests.tiny import same_bits, write_tiny_checkpoint

NUM_VALUES_ROWS = 16


def weights(model: nn.Module) -> Memory:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def run(trainer: Trainer) -> Trainer:
    trainer.run(save_every=2, probe_every=2, show_progress=False)
    return trainer


def test_the_loss_falls(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, steps=8, cooldown=0)
    batch = trainer.data.batch(1000, STAGE)
    before = float(trainer.loss(batch).detach())
    for _ in range(8):
        trainer.train_step()
    trainer.step = 0
    assert float(trainer.loss(batch).detach()) < before - 0.3


def test_a_gradient_reaches_every_weight(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    trainer.loss(trainer.data.batch(0, STAGE)).backward()  # type: ignore[no-untyped-call]
    silent = [name for name, p in trainer.model.named_parameters() if p.grad is None or not float(p.grad.norm()) > 0]
    assert silent == []
    trainer = new_trainer(tmp_path)
    before = weights(trainer.model)
    trainer.train_step()
    assert [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])] == []


def test_weights_of_the_loss_are_the_batchs(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, message_share=0.0)
    batch = trainer.data.batch(0, STAGE)
    replies_alone = torch.where(batch.weight_BT > 0.3, batch.weight_BT, torch.zeros(()))
    loss = float(trainer.loss(batch).detach())
    assert loss == pytest.approx(float(trainer.loss(replace(batch, weight_BT=replies_alone)).detach()))
    assert loss == pytest.approx(float(trainer.loss(replace(batch, weight_BT=3 * replies_alone)).detach()), rel=1e-5)
    values_alone = torch.where(batch.value_BT, batch.weight_BT, torch.zeros(()))
    assert loss != pytest.approx(float(trainer.loss(replace(batch, weight_BT=values_alone)).detach()))


def test_killed_and_gone_on_with_is_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(new_trainer(tmp_path / "whole"))
    killed = new_trainer(tmp_path / "killed")
    step = killed.train_step

    def dies_in_the_fourth_step() -> float:
        if killed.step == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(killed, "train_step", dies_in_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    # Other weights than the run's: all that counts is in the folder.
    resumed = new_trainer(tmp_path / "killed", seed=9)
    assert (resumed.step, resumed.tokens_seen) == (2, 2 * STAGE.num_rows * STAGE.num_tokens)
    run(resumed)
    assert same_bits(weights(resumed.model), weights(whole.model))
    states = [load_file(tmp_path / name / STATE_FILE) for name in ("killed", "whole")]
    assert same_bits(*states)
    assert any(name.startswith("exp_avg|") for name in states[0])
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


def test_the_log_has_every_step_and_probes_where_asked(tmp_path: Path) -> None:
    run(new_trainer(tmp_path))
    log = log_of(tmp_path)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in log if "recall" in row] == [2, 4, 5], "the last step is probed too"
    assert [row["tokens"] for row in log] == [n * STAGE.num_rows * STAGE.num_tokens for n in range(1, 6)]
    assert all(math.isfinite(row["loss"]) for row in log)


def test_a_finished_run_is_done_and_a_longer_plan_goes_on(tmp_path: Path) -> None:
    run(new_trainer(tmp_path))
    before = weights(load_checkpoint(tmp_path)[0])
    assert run(new_trainer(tmp_path)).step == PLAN.steps
    assert same_bits(weights(load_checkpoint(tmp_path)[0]), before)
    assert run(new_trainer(tmp_path, steps=PLAN.steps + 1)).step == PLAN.steps + 1
    assert not same_bits(weights(load_checkpoint(tmp_path)[0]), before)


def test_a_folder_has_a_run_once_it_was_saved(tmp_path: Path) -> None:
    assert not has_run(tmp_path)
    trainer = new_trainer(tmp_path)
    assert not has_run(tmp_path)
    trainer.save()
    assert has_run(tmp_path)
    with safe_open(tmp_path / STATE_FILE, framework="pt") as file:
        assert file.metadata() == {"step": "0", "tokens_seen": "0", "optimizer": "adamw"}
    write_tiny_checkpoint(tmp_path / "checkpoint")
    assert not has_run(tmp_path / "checkpoint"), "a checkpoint alone is no run"


@pytest.mark.parametrize("spoil", [lambda loss: loss * math.nan, lambda loss: loss * math.inf])
def test_a_gradient_that_is_not_finite_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]
) -> None:
    trainer = new_trainer(tmp_path)
    before = weights(trainer.model)
    loss = trainer.loss
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "loss", lambda batch: spoil(loss(batch)))
        assert not math.isfinite(trainer.train_step())
    assert trainer.step == 1, "the run goes on with the next batch"
    assert same_bits(weights(trainer.model), before)
    assert not trainer.optimizer.state
    assert math.isfinite(trainer.train_step())
    assert all(bool(value.isfinite().all()) for value in weights(trainer.model).values())
    assert not same_bits(weights(trainer.model), before)


def test_the_rate_rises_stays_and_falls(tmp_path: Path) -> None:
    plan = TrainingPlan(PLAN.stages, steps=20, learning_rate=1.0, warmup=4, cooldown=5)
    expected = [0.25, 0.5, 0.75, *[1.0] * 13, 0.8, 0.6, 0.4, 0.2]
    assert [plan.rate(step) for step in range(20)] == pytest.approx(expected)
    assert [replace(plan, warmup=1, cooldown=0).rate(step) for step in (0, 10, 19)] == [1.0, 1.0, 1.0]
    trainer = new_trainer(tmp_path)
    for step in range(PLAN.steps):
        trainer.train_step()
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {PLAN.rate(step)}


def test_stages_follow_each_other(tmp_path: Path) -> None:
    short, long = STAGE, Stage(num_tokens=120, num_rows=2, most_facts=3, talk=0.3)
    plan = TrainingPlan(((0, short), (2, long)), steps=4)
    assert [plan.stage(step) for step in range(4)] == [short, short, long, long]
    trainer = new_trainer(tmp_path, stages=plan.stages)
    seen = []
    for _ in range(4):
        trainer.train_step()
        seen.append(trainer.tokens_seen)
    assert seen == [288, 576, 816, 1056]


def test_gains_biases_and_filters_do_not_decay(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, learning_rate=0.1, warmup=1, weight_decay=0.5, cooldown=0)
    before = weights(trainer.model)
    trainer.optimizer.zero_grad()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.1
    trainer.optimizer.step()
    for name, value in trainer.model.state_dict().items():
        decays = value.dim() >= 2 and "weight_WF11D" not in name
        assert torch.allclose(value, before[name] * (0.95 if decays else 1.0)), name
    assert any("weight_WF11D" in name for name in before)


def test_recall_counts_values_whose_every_token_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new_trainer(tmp_path)
    stage = replace(STAGE, num_rows=NUM_VALUES_ROWS)
    batch = DialogueData(dialogue_tokenizer(), talk(), PROBE_SEED).batch(0, stage, held_out=True)
    row, last = batch.value_BT[:, :-1].nonzero()[0].tolist()
    while batch.value_BT[row, last + 1]:
        last += 1
    guesses = torch.nn.functional.one_hot(batch.target_BT, trainer.tokenizer.vocab_size)
    monkeypatch.setattr(trainer.model, "logits", lambda x_BTD: x_BTD)
    monkeypatch.setattr(trainer.model, "hidden", lambda tokens_BT, memory: (guesses, memory))
    perfect = trainer.probe(NUM_VALUES_ROWS)
    assert (perfect.exact, perfect.tokens) == (1.0, 1.0)
    guesses[row, last] = guesses[row, last].roll(1)
    flawed = trainer.probe(NUM_VALUES_ROWS)
    assert flawed.tokens == pytest.approx(1 - 1 / int(batch.value_BT.sum()))
    assert flawed.exact < flawed.tokens
    guesses.zero_()
    assert trainer.probe(NUM_VALUES_ROWS).exact == 0.0


def test_a_probe_leaves_no_trace(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    before = weights(trainer.model)
    assert trainer.probe() == trainer.probe()
    assert same_bits(weights(trainer.model), before)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adamw"])
def test_a_run_goes_on_with_every_optimizer(name: str, tmp_path: Path) -> None:
    whole = run(new_trainer(tmp_path / "whole", optimizer=name, steps=4))
    assert all(math.isfinite(row["loss"]) for row in log_of(tmp_path / "whole"))
    first = new_trainer(tmp_path / "killed", optimizer=name, steps=4)
    for _ in range(2):
        first.train_step()
    first.save()
    resumed = run(new_trainer(tmp_path / "killed", seed=9, optimizer=name, steps=4))
    assert same_bits(weights(resumed.model), weights(whole.model))
    with pytest.raises(InvalidRequest, match=f"'{name}', not 'adamw'"):
        new_trainer(tmp_path / "killed")


def test_an_optimizer_of_ones_own_gets_the_model(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\n\ndef make(model, learning_rate):\n"
        "    return torch.optim.Adagrad(model.parameters(), learning_rate)\n"
    )
    trainer = run(new_trainer(tmp_path / "run", optimizer=str(own)))
    assert isinstance(trainer.optimizer, torch.optim.Adagrad)
    resumed = new_trainer(tmp_path / "run", optimizer=str(own), seed=3)
    assert same_bits(weights(resumed.model), weights(trainer.model))
    assert len(resumed.optimizer.state) == len(list(resumed.model.parameters()))


def test_memory_is_saved_in_the_middle_of_dialogues_alone(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, stages=((0, replace(STAGE, segments=2)),))
    for expected in (True, False, True):
        trainer.train_step()
        trainer.save()
        assert any(name.startswith("memory|") for name in load_file(tmp_path / STATE_FILE)) == expected
    resumed = new_trainer(tmp_path, seed=5, stages=((0, replace(STAGE, segments=2)),))
    assert same_bits(resumed.carried, trainer.carried)
    assert resumed.train_step() == trainer.train_step()


def test_another_curriculum_may_begin_in_the_middle_of_a_dialogue(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, stages=((0, replace(STAGE, segments=2)),))
    trainer.train_step()
    trainer.save()
    for stage in (STAGE, replace(STAGE, num_rows=2, segments=3)):
        resumed = new_trainer(tmp_path, stages=((0, stage),))
        assert math.isfinite(resumed.train_step())
        assert len(resumed.carried[POSITION]) == stage.num_rows
        assert resumed.carried[POSITION].tolist() == [STAGE.num_tokens] * stage.num_rows, "they have read one row"


def test_checkpointing_and_bfloat16_are_the_plans(tmp_path: Path) -> None:
    plain = run(new_trainer(tmp_path / "plain"))
    again = run(new_trainer(tmp_path / "again", checkpointing=True))
    half = run(new_trainer(tmp_path / "half", precision="bfloat16"))
    assert same_bits(weights(plain.model), weights(again.model))
    assert {value.dtype for value in weights(half.model).values()} == {torch.float32}
    losses = [[row["loss"] for row in log_of(trainer.folder)] for trainer in (plain, half)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    with pytest.raises(InvalidRequest, match="float32, bfloat16"):
        new_trainer(tmp_path / "other", precision="float16")

"""The table of clocks: equal searches for every arm, halved by validation loss; steps taken or not; what is learned."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from engine.errors import InvalidRequest
from engine.evaluation.contestants import num_parameters
from engine.evaluation.examples import Examples, mark
from engine.evaluation.study import Results, Run
from engine.evaluation.table_command import run_table
from engine.evaluation.tables import clocks
from engine.evaluation.tables.clocks import (
    ARMS,
    LEVELS,
    PERIODS,
    Candidate,
    Clocked,
    Search,
    candidates,
    clocked,
    halve,
    loss,
    mark_in_context,
    remarks,
    rungs,
)
from engine.evaluation.tasks.dialogues import DialoguePlan, DialogueTask
from engine.training.dialogue import Stage

RATES = (1e-3, 8e-3)
TINY = Candidate(1e-3, (16, 32), 3.0)


def _model(arm: str, candidate: Candidate = TINY) -> Clocked:
    torch.manual_seed(0)
    return clocked(64, arm, candidate)


def _examples(num_tokens: int = 80) -> Examples:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(8, 64, (3, num_tokens + 1), generator=generator)
    counts = torch.rand(tokens.shape, generator=generator) < 0.6
    return Examples(tokens[:, :-1], tokens[:, 1:], counts[:, 1:])


def test_every_arm_has_as_many_candidates_and_steps() -> None:
    of_arm = {arm: candidates(arm, RATES) for arm in ARMS}
    assert of_arm["fixed"] == of_arm["learned"]
    for found in of_arm.values():
        assert len(set(found)) == rungs(160)[0][0] == 6
        rates = sorted(one.rate for one in found)
        assert rates[0] == pytest.approx(1e-3)
        assert rates[-1] == pytest.approx(8e-3)
    # Without steps there is nothing but the learning rate to search.
    assert len({(one.periods, one.level_rate) for one in of_arm["none"]}) == 1
    assert {one.periods for one in of_arm["fixed"]} == {(a, b) for a in PERIODS for b in PERIODS if a < b}
    assert len({one.level_rate for one in of_arm["fixed"]}) == 4
    assert rungs(160) == ((6, 40), (3, 80), (1, 160))


def test_halving_keeps_the_best_and_ends_with_its_seeds() -> None:
    task = DialogueTask(DialoguePlan(Stage(65, 1, 2, 0.0)))
    every, asked = candidates("fixed", RATES), []
    losses = dict(zip(every, (3.0, math.nan, 1.0, 2.0, math.inf, 4.0), strict=True))

    def run(arm: str, candidate: Candidate, steps: int, seed: int) -> Run:
        asked.append((candidate, steps, seed))
        return Run("clocks", arm, seed, {"candidate": candidate.name}, {}, {"validation_loss": losses[candidate]})

    runs = halve(Search(task, 160, 3, RATES), "fixed", run)
    first, second, last = asked[:6], asked[6:9], asked[9]
    assert first == [(one, 40, 0) for one in every]
    assert second == [(every[place], 80, 0) for place in (2, 3, 0)]
    assert last == (every[2], 160, 0)
    assert [(run.settings["candidate"], run.seed) for run in runs] == [(every[2].name, seed) for seed in range(3)]


def test_arms_begin_alike_and_differ_by_their_steps() -> None:
    tokens = _examples().tokens_BT
    with torch.no_grad():
        losses = {arm: _model(arm).losses(tokens)[0] for arm in ARMS}
    assert all(value.shape == (3, 79) for value in losses.values())
    # A learned rate begins as the fixed one; before the first step there is no difference at all.
    assert torch.equal(losses["fixed"], losses["learned"])
    assert torch.allclose(losses["none"][:, :16], losses["fixed"][:, :16], atol=1e-4)
    assert not torch.allclose(losses["none"][:, 16:], losses["fixed"][:, 16:], atol=1e-3)
    sizes = {arm: num_parameters(_model(arm)) for arm in ARMS}
    assert sizes["none"] == sizes["fixed"] == sizes["learned"] - len(LEVELS)


@pytest.mark.parametrize("periods", [(16, 32), (64, 128)])
def test_a_level_steps_by_its_own_clock(periods: tuple[int, int]) -> None:
    with torch.no_grad():
        slow, none = (
            _model(arm, Candidate(1e-3, periods, 3.0)).losses(_examples().tokens_BT)[0] for arm in ("fixed", "none")
        )
    same = torch.isclose(slow, none, atol=1e-4).all(0).tolist()
    assert all(same[: periods[0]])
    assert not all(same[periods[0] :])


def test_only_learned_rates_have_a_gradient() -> None:
    for arm in ARMS:
        model = _model(arm)
        loss(model, _examples()).backward()  # type: ignore[no-untyped-call]
        slopes = [moved.grad for moved in model.moved]
        assert len(slopes) == (2 if arm == "learned" else 0)
        assert all(slope is not None and float(slope.abs()) > 0 for slope in slopes)
    rates = _model("learned").log_rates()
    assert {name: math.exp(float(value.detach())) for name, value in rates.items()} == {
        name: pytest.approx(3.0) for name in LEVELS
    }


def test_the_loss_is_that_of_what_counts_but_for_the_last_target() -> None:
    examples, model = _examples(), _model("none")
    with torch.no_grad():
        losses_BT, _ = model.losses(examples.tokens_BT)
    counts_BT = examples.counts_BT[:, :-1]
    assert float(loss(model, examples).detach()) == pytest.approx(
        float((losses_BT * counts_BT).sum() / counts_BT.sum())
    )


@pytest.mark.parametrize("arm", ["none", "fixed"])
def test_marks_are_those_of_examples_where_no_step_is_taken(arm: str) -> None:
    # Rows shorter than the first period: the arm makes no difference. The last target is left out.
    model, examples = _model(arm, Candidate(1e-3, (64, 128))), _examples(50)
    with torch.no_grad():
        guesses_BT = model.logits(model.hidden(examples.tokens_BT, model.initial_memory(3, levels=False))[0]).argmax(-1)
    # Now and then the model guesses right.
    target_BT = torch.where(torch.arange(50) % 4 > 0, guesses_BT, examples.target_BT)
    tokens_BT = examples.tokens_BT
    found, expected = (Examples(tokens_BT, target_BT, counts) for counts in (examples.counts_BT, _but_last(examples)))
    marks = mark_in_context(model, _fed(model, found)), mark(model, _fed(model, expected))
    assert marks[0].num_answers == marks[1].num_answers > 10
    assert marks[0].accuracy == pytest.approx(marks[1].accuracy)
    assert marks[0].loss == pytest.approx(marks[1].loss, rel=1e-5)


def _but_last(examples: Examples) -> torch.Tensor:
    counts = examples.counts_BT.clone()
    counts[:, -1] = False
    return counts


def _fed(model: Clocked, examples: Examples) -> Examples:
    """The same, where every other token read is the model's own guess: some answers are right, some are not."""
    tokens = examples.tokens_BT.clone()
    with torch.no_grad():
        for at in range(1, tokens.shape[1]):
            if at % 4:
                memory = model.initial_memory(tokens.shape[0], levels=False)
                tokens[:, at] = model.logits(model.hidden(tokens[:, :at], memory)[0][:, -1]).argmax(-1)
    return Examples(tokens, torch.cat([tokens[:, 1:], examples.target_BT[:, -1:]], 1), examples.counts_BT)


def test_the_table_is_searched_resumes_and_says_where_rates_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clocks, "STAGE", Stage(80, 1, 2, 0.0))
    monkeypatch.setattr(clocks, "NUM_TEST_ROWS", 4)
    flags = ["--arm", "learned", "--steps", "4", "--seeds", "2", "--row-tokens", "80", "--results", str(tmp_path)]
    assert run_table("clocks", flags) == 0
    path = tmp_path / "clocks.jsonl"
    runs = Results(path).runs
    # Six trials, three, one, and the best one's second seed.
    assert [run.settings["steps"] for run in runs] == [1] * 6 + [2] * 3 + [4] * 2
    assert [run.seed for run in runs] == [0] * 10 + [1]
    assert all(run.model == "learned" and list(run.values) == ["perplexity", "recall", "value nats"] for run in runs)
    assert {"rate cms.fast", "rate cms.medium"} <= runs[-1].notes.keys()
    assert "| learned |" in capsys.readouterr().out
    # Cut off in the middle of the search, it goes on with what is missing.
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    trained: list[Candidate] = []
    model_of = clocked

    def noted(vocab_size: int, arm: str, candidate: Candidate) -> Clocked:
        trained.append(candidate)
        return model_of(vocab_size, arm, candidate)

    monkeypatch.setattr(clocks, "clocked", noted)
    assert run_table("clocks", flags) == 0
    assert len(trained) == 3
    again = Results(path).runs
    assert [(run.settings, run.values) for run in again] == [(run.settings, run.values) for run in runs]


def test_rows_without_a_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="64 tokens"):
        run_table("clocks", ["--row-tokens", "64", "--results", str(tmp_path)])


def test_remarks_name_the_best_candidates_and_rates() -> None:
    runs = [
        Run("clocks", "fixed", 0, {"candidate": "rate 0.001"}, {}),
        *(Run("clocks", "learned", n, {"candidate": "rate 0.002"}, {}, {"rate cms.fast": 1.0 + n}) for n in (0, 1)),
    ]
    said = remarks(runs)
    assert "fixed: rate 0.001; learned: rate 0.002" in said
    assert "learned rate of cms.fast in the end: 1.5" in said
    assert "medium" not in said

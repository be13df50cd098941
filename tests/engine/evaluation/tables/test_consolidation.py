"""The table of consolidation, by its command: its rows and columns, a second call that plays nothing, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.consolidation.policy import GenerationPolicy
from engine.core import Consolidation, GateCheck
from engine.errors import InvalidRequest
from engine.evaluation.rounds import Course, RoundsPlan, play
from engine.evaluation.study import Results
from engine.evaluation.table_command import run_table
from engine.evaluation.tables import consolidation
from engine.model.weights import load_checkpoint
from tests.tiny import write_tiny_checkpoint

SMALL = ("--seeds", "1", "--rounds", "2", "--sessions", "1", "--facts", "1")


def ended(status: str, before: float, after: float) -> Consolidation:
    gate = {"perplexity": GateCheck(before, after, before * 1.02, True)}
    return Consolidation("c", status, 0, "2026-01-01T00:00:00Z", gate=gate)


def test_what_is_kept_is_counted_over_what_was_taken_up() -> None:
    course = Course(
        in_session=[1.0, 1.0, 0.5],
        before=[0.0, 0.0, 0.0],
        matrix=[[0.8], [0.6, 1.0], [0.4, 0.5, 0.6]],
        consolidations=[ended("accepted", 10.0, 11.0), ended("rejected", 11.0, 20.0), ended("accepted", 11.0, 12.0)],
    )
    assert course.uptake == pytest.approx(0.8)
    assert course.kept == pytest.approx(0.45)
    assert course.retention == pytest.approx(0.5)
    assert course.perplexity == pytest.approx(1.2)


def test_where_nothing_was_learned_nothing_is_kept() -> None:
    course = Course([1.0], [0.0], [[0.0]], 0.0, [])
    assert (course.uptake, course.kept, course.retention, course.perplexity) == (0.0, 0.0, 0.0, 1.0)


async def test_rounds_run_through_a_real_engine_and_worker(tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(write_tiny_checkpoint(tmp_path))
    ticks: list[None] = []
    policy = GenerationPolicy(
        material="turns",
        num_steps=2,
        rows_per_step=4,
        least_uptake=0.0,
        least_calm=0.0,
        least_heard=0.0,
        least_retention=0.0,
        most_perplexity=1e9,
    )
    tick: Callable[[], object] = lambda: ticks.append(None)  # noqa: E731
    course = await play(model, tokenizer, RoundsPlan(2, 1, 1), policy, 0, tick)
    assert [one.status for one in course.consolidations] == ["accepted", "accepted"]
    assert [one.to_generation for one in course.consolidations] == [1, 2]
    # Two turns of the round's one session: the fact, and other talk.
    assert [(one.num_sessions, one.num_turns) for one in course.consolidations] == [(1, 2), (1, 2)]
    assert [len(row) for row in course.matrix] == [1, 2]
    assert len(ticks) == 2


def test_a_run_that_is_there_is_not_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    flags = (*SMALL, "--checkpoint", str(folder), "--methods", "nothing", "--results", str(tmp_path))
    assert run_table("consolidation", flags) == 0
    assert "retention" in capsys.readouterr().out
    kept = json.loads((tmp_path / "consolidation.json").read_text())
    (run,) = kept["runs"]
    assert (run["model"], run["seed"]) == ("nothing", 0)
    assert list(run["values"]) == ["in session", "before", "uptake", "kept", "retention", "apart"]
    assert "perplexity 1.000 times" in consolidation.remarks(Results(tmp_path / "consolidation.jsonl").runs)

    async def never(*given: object) -> Course:
        raise AssertionError("played again")

    monkeypatch.setattr(consolidation, "play", never)
    assert run_table("consolidation", flags) == 0


@pytest.mark.parametrize(("flag", "value", "param"), [("--methods", "magic", "methods"), ("--rounds", "0", "rounds")])
def test_what_makes_no_sense_is_refused(tmp_path: Path, flag: str, value: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run_table("consolidation", (*SMALL, "--results", str(tmp_path), flag, value))
    assert refused.value.param == param


def test_every_method_is_a_policy_or_none() -> None:
    policies = {name: consolidation._policy(name) for name in consolidation.METHODS}
    assert policies["nothing"] is None
    assert policies["ours"] == GenerationPolicy(most_attempts=1)
    assert len({repr(policy) for policy in policies.values()}) == len(policies)

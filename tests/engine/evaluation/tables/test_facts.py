"""The table of facts, by its command: its rows, its columns, a second call that plays nothing, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import HopeError
from engine.evaluation.facts import UNKNOWN, Answer, FactsPlan
from engine.evaluation.recall import Asked
from engine.evaluation.study import Results, Run
from engine.evaluation.table_command import run_table
from engine.evaluation.tables import facts
from engine.model.baselines import build_baseline
from engine.model.baselines.common import BaselineConfig
from engine.model.weights import save_checkpoint
from tests.tiny import tiny_tokenizer, write_tiny_checkpoint

SMALL = (
    "--seeds",
    "1",
    "--sessions",
    "1",
    "--facts",
    "1",
    "--gaps",
    "1,2",
    "--without-gaps",
    "1",
    "--worker-turns",
    "0",
)
LABELS = ("all levels", "without titans", "without cms.fast", "without cms.medium")


class Player:
    """Stands in for `facts.play`: recalls everything at gap 1 and nothing later, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.played: list[tuple[FactsPlan, frozenset[str], int]] = []

    def play(
        self, model: object, tokenizer: object, plan: FactsPlan, off: frozenset[str], seed: int, tick: object
    ) -> list[Answer]:
        self.played.append((plan, off, seed))
        told = [(f"{source} {gap}", gap == 1, None) for gap in plan.gaps for source in plan.sources]
        changed = [("changed 1", True, "Max"), ("changed 1", False, "Max")]
        return [answer(*one) for one in [*told, (UNKNOWN, True, None), *changed]]


def answer(condition: str, right: bool, old: str | None) -> Answer:
    reply = "You never told me." if condition == UNKNOWN else "Rex." if right else old or "I don't know."
    return Answer(condition, Asked(1, "My dog is called Rex.", "What is my dog called?", "Rex", reply), old)


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    found = Player()
    monkeypatch.setattr(facts, "play", found.play)
    return found


def measured(folder: Path, *flags: str) -> list[Run]:
    """Runs the table by its command; the runs that count."""
    assert run_table("facts", ["--results", str(folder), *flags]) == 0
    lines = json.loads((folder / "facts.json").read_text())["runs"]
    return [run for run in Results(folder / "facts.jsonl").runs if run.model in {line["model"] for line in lines}]


def test_end_to_end_a_row_a_level_and_a_column_a_condition(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = measured(tmp_path, "--checkpoint", str(checkpoint), *SMALL, "--sources", "everyday", "--show")
    assert [run.model for run in runs] == [f"{checkpoint.name}, {label}" for label in LABELS]
    assert list(runs[0].values) == ["everyday 1", "everyday 2", "changed 1", "unknown"]
    for run in runs:
        assert set(run.values.values()) == {0.0}, "noise recalls nothing and does not say so"
        assert run.notes["parameters"] > 1000
        if run is not runs[0]:
            assert list(run.values) == ["everyday 1", "changed 1", "unknown"]
    shown = [line for line in capsys.readouterr().out.splitlines() if "  ->  " in line]
    assert len(shown) == 4 + 3 * 3
    assert all(line.startswith("- ") for line in shown)


def test_a_baseline_is_asked_the_same(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    folder = tmp_path / "window"
    built_from = BaselineConfig("transformer-window", tokenizer.vocab_size, 32, 1, 2, 30_000)
    save_checkpoint(folder, build_baseline(built_from), tokenizer)
    (run,) = measured(tmp_path, "--checkpoint", str(folder), *SMALL, "--sources", "everyday", "--without", "")
    assert run.model == "window, as it is"
    assert list(run.values) == ["everyday 1", "everyday 2", "changed 1", "unknown"]


def test_columns_are_in_order_and_shares_are_counted(player: Player, tmp_path: Path) -> None:
    runs = measured(tmp_path, "--seeds", "1", "--without", "titans")
    assert [run.model for run in runs] == ["all levels", "without titans"]
    values = runs[0].values
    sources = [f"{source} {gap}" for source in ("everyday", "open", "training") for gap in (1, 5, 20, 100, 300, 1000)]
    assert list(values) == [*sources, "changed 1", "unknown"]
    assert all(values[name] == (1.0 if name.endswith(" 1") else 0.0) for name in sources)
    assert (values["changed 1"], values["unknown"]) == (0.5, 1.0)
    assert runs[0].notes["told, not known"] == pytest.approx(5 / 6)
    assert runs[0].notes["changed, old named"] == 0.5
    assert facts.remarks(runs).splitlines() == [
        "- all levels: of told facts, 83.3% were said not to be known; of changed ones, the old value was named for "
        "50.0%.",
        "- without titans: of told facts, 75.0% were said not to be known; of changed ones, the old value was named "
        "for 50.0%.",
    ]


def test_without_flags_all_levels_go_further_than_those_with_one_off(player: Player, tmp_path: Path) -> None:
    measured(tmp_path)
    whole, shorter = FactsPlan(), FactsPlan(gaps=(1, 5, 20, 100))
    off = [frozenset({label.removeprefix("without ")}) for label in LABELS[1:]]
    expected = [(whole, frozenset[str](), seed) for seed in range(3)]
    expected += [(shorter, one, seed) for one in off for seed in range(3)]
    assert player.played == expected
    assert (whole.num_sessions, whole.facts_per_session, whole.gaps[-1]) == (10, 5, 1000)


def test_what_was_measured_is_not_played_again(player: Player, tmp_path: Path) -> None:
    first = measured(tmp_path, *SMALL)
    count = len(player.played)
    assert measured(tmp_path, *SMALL) == first
    assert len(player.played) == count == len(LABELS)
    measured(tmp_path, *SMALL, "--sources", "open")
    assert len(player.played) == 2 * count


def test_another_checkpoint_is_another_row(player: Player, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    write_tiny_checkpoint(other, seed=1)
    copy = shutil.copytree(checkpoint, tmp_path / "first")
    for folder in (copy, other):
        measured(tmp_path, *SMALL, "--checkpoint", str(folder), "--without", "cms.fast")
    rows = [run.model for run in Results(tmp_path / "facts.jsonl").runs]
    assert rows == ["first, all levels", "first, without cms.fast", "second, all levels", "second, without cms.fast"]
    settings = [run.settings["checkpoint"] for run in Results(tmp_path / "facts.jsonl").runs]
    assert len(set(settings)) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sources", "rumours"), "rumours"),
        (("--gaps", "5,1"), "5,1"),
        (("--gaps", "0,1"), "0,1"),
        (("--without-gaps", "3,3"), "3,3"),
        (("--without", "cms.fats"), r"cms\.fats"),
        (("--sessions", "0"), "must be a session"),
        (("--facts", "9"), "from 1 to 8 facts"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags: tuple[str, ...], words: str, player: Player, tmp_path: Path) -> None:
    with pytest.raises(HopeError, match=words):
        measured(tmp_path, *SMALL, *flags)
    assert player.played == []


def test_where_no_checkpoint_is_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(HopeError, match="no checkpoint"):
        measured(tmp_path, "--checkpoint", str(tmp_path))

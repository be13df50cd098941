"""Other talk: the bundled pairs, and corpora in the file formats of a data folder."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.training.relations import load_small_talk
from engine.training.talk import MAX_CHARACTERS, Talk, bundled_pairs, corpus_runs, stories

LONG = "word " * MAX_CHARACTERS
SENTENCE = "Once upon a time there was a fox who lived under the old bridge."


def write_turns(path: Path, *dialogues: list[list[str]]) -> None:
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for turns in dialogues:
            file.write(json.dumps({"turns": turns}) + "\n")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small data folder; one turn of it is too long, one comes out of turn."""
    write_turns(
        tmp_path / "self_dialogue" / "self_dialogue.jsonl.gz",
        [
            ["user", "Seen any films?"],
            ["assistant", " One about owls. "],
            ["user", "Was it good?"],
            ["assistant", "It was."],
            ["user", LONG],
            ["assistant", "That is a lot."],
            ["user", "Bye."],
            ["assistant", "See you."],
        ],
        [["assistant", "Hello?"], ["user", "Hi."], ["user", "Are you there?"], ["assistant", "Yes."]],
    )
    write_turns(
        tmp_path / "taskmaster4" / "tm4_coffee.jsonl.gz", [["user", "A coffee."], ["assistant", "With milk, Zoë?"]]
    )
    folder = tmp_path / "chatterbot" / "english"
    folder.mkdir(parents=True)
    (folder / "a.yml").write_text(
        "categories: [AI]\nconversations:\n- - What are you?\n  - A program.\n- - 12\n  - 13\n"
    )
    (tmp_path / "tinystories").mkdir()
    prose = f"{SENTENCE}<|endoftext|>Too short.\n{'x' * 500}\n"
    (tmp_path / "tinystories" / "tinystories_cased_2M.txt").write_text(prose)
    (tmp_path / "fairy_tales").mkdir()
    (tmp_path / "fairy_tales" / "fairy_tales.txt").write_text(f"  {SENTENCE} Twice.  \n")
    return tmp_path


def test_the_bundled_talk_is_every_pair_of_the_small_talk() -> None:
    pairs = bundled_pairs()
    assert len(pairs) == sum(len(replies) for _, replies in load_small_talk().pairs)
    assert ("How are you today?", "I'm doing well, thank you.") in pairs
    talk = Talk(None)
    assert set(talk.runs) == {"bundled", "threads"}
    rng = random.Random(0)
    drawn = {tuple(talk.run(rng, 3)) for _ in range(200)}
    assert len(drawn) > 50
    beginnings = {thread[:3] for thread in load_small_talk().threads}
    assert all(run in beginnings or (len(run) == 1 and run[0] in pairs) for run in drawn)
    assert drawn & beginnings


def test_without_prose_a_paragraph_is_small_talk() -> None:
    messages = {message for message, _ in bundled_pairs()} | {run[0][0] for run in load_small_talk().threads}
    for seed in range(20):
        assert Talk(None).paragraph(random.Random(seed)) in messages


def test_runs_are_consecutive_pairs_and_a_long_turn_ends_one(data: Path) -> None:
    runs = corpus_runs(data)
    assert runs["self_dialogue"] == [
        [("Seen any films?", "One about owls."), ("Was it good?", "It was.")],
        [("Bye.", "See you.")],
        [("Are you there?", "Yes.")],
    ]
    assert runs["taskmaster4"] == [[("A coffee.", "With milk, Zoë?")]]
    assert runs["chatterbot"] == [[("What are you?", "A program.")], [("12", "13")]]


def test_paragraphs_are_neither_short_nor_long(data: Path) -> None:
    assert stories(data) == [SENTENCE, f"{SENTENCE} Twice."]
    talk = Talk(data)
    assert {talk.paragraph(random.Random(seed)) for seed in range(20)} == set(stories(data))


def test_every_corpus_is_drawn_by_its_weight(data: Path) -> None:
    talk, rng = Talk(data), random.Random(1)
    origin = {pair: name for name, runs in talk.runs.items() for run in runs for pair in run}
    drawn = Counter(origin[talk.run(rng, 1)[0]] for _ in range(2000))
    for name, weight in Talk.WEIGHTS:
        assert drawn[name] / 2000 == pytest.approx(weight, abs=0.04)


def test_a_run_is_cut_anywhere_and_stays_in_order(data: Path) -> None:
    talk = Talk(data)
    talk.runs = {name: [[(str(n), str(n + 1)) for n in range(6)]] for name in talk.runs}
    starts = set()
    for seed in range(100):
        run = talk.run(random.Random(seed), 3)
        first = int(run[0][0])
        starts.add(first)
        assert run == [(str(n), str(n + 1)) for n in range(first, first + 3)]
    assert starts == {0, 1, 2, 3}
    assert len(talk.run(random.Random(0), 99)) == 6


def test_the_same_seed_draws_the_same_talk(data: Path) -> None:
    talk = Talk(data)
    drawn = [[talk.run(random.Random(seed), 2) for seed in range(30)] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_folder_that_lacks_a_corpus_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"lacks self_dialogue/.+fairy_tales"):
        Talk(tmp_path)

"""Batches of memory dialogues: the same for the same seed, every token with its weight, every value marked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.tokenizer import ASSISTANT, END, USER
from engine.training import data as data_module
from engine.training.data import (
    MESSAGE_WEIGHT,
    REPLY_WEIGHT,
    TALK_WEIGHT,
    TEXT_WEIGHT,
    UNKNOWN_WEIGHT,
    VALUE_WEIGHT,
    Batch,
    DialogueData,
    count_recalled,
    tokenizer_texts,
)
from engine.training.dialogue import Dialogue, Line, Stage
from engine.training.stream import TextStream
from engine.training.values import is_held_out
from tests.engine.training.samples import dialogue_tokenizer, talk

STAGE = Stage(num_tokens=300, num_rows=4, most_facts=4, talk=0.3)
LINES = (
    Line("My dog is called Brenko.", "Nice name!"),
    Line("How are you?", "Quite well.", is_talk=True),
    Line("Once upon a time.", None, is_talk=True),
    Line("Who is my boss?", "No idea.", is_unknown=True),
    Line("What is my dog called?", "Your dog is called Brenko, I think.", "Brenko"),
)


def dialogues(seed: int = 1) -> DialogueData:
    return DialogueData(dialogue_tokenizer(), talk(), seed)


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("tokens_BT", "target_BT", "weight_BT", "value_BT")
    )


def runs(marks_T: Tensor) -> Iterator[tuple[float, slice]]:
    """Stretches of equal marks."""
    for mark, places in itertools.groupby(range(len(marks_T)), key=lambda at: float(marks_T[at])):
        at = list(places)
        yield mark, slice(at[0], at[-1] + 1)


def values_of(batch: Batch) -> list[str]:
    """Texts of all marked values that end within their row."""
    decode = dialogue_tokenizer().decode
    return [
        decode(target_T[place].tolist()).strip()
        for target_T, value_T in zip(batch.target_BT, batch.value_BT, strict=True)
        for mark, place in runs(value_T)
        if mark and place.stop < STAGE.num_tokens
    ]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Batch:
    """A batch of the dialogue `LINES`, over and over."""
    monkeypatch.setattr(Dialogue, "lines", lambda self, stage: itertools.cycle(LINES))
    return dialogues().batch(0, STAGE)


def test_a_batch_is_always_the_same() -> None:
    batch = dialogues().batch(5, STAGE)
    assert same(batch, dialogues().batch(5, STAGE))
    assert not same(batch, dialogues().batch(6, STAGE))
    assert not same(batch, dialogues(seed=2).batch(5, STAGE))


def test_the_rows_of_a_batch_are_different_dialogues() -> None:
    tokens_BT = dialogues().batch(0, STAGE).tokens_BT
    assert len({tuple(row_T.tolist()) for row_T in tokens_BT}) == STAGE.num_rows


@pytest.mark.parametrize("num_tokens", [1, 40, 300])
def test_rows_are_full_and_targets_one_further(num_tokens: int) -> None:
    batch = dialogues().batch(0, Stage(num_tokens, 3, 4, 0.3))
    for tensor in (batch.tokens_BT, batch.target_BT, batch.weight_BT, batch.value_BT):
        assert tensor.shape == (3, num_tokens)
    assert torch.equal(batch.tokens_BT[:, 1:], batch.target_BT[:, :-1])
    assert set(batch.tokens_BT[:, 0].tolist()) == {USER}


def test_a_row_is_its_dialogue_token_by_token(written: Batch) -> None:
    encode = dialogue_tokenizer().encode
    ids: list[int] = []
    for line in itertools.islice(itertools.cycle(LINES), 100):
        said = [] if line.reply is None else [ASSISTANT, *encode(line.reply)]
        ids += [USER, *encode(line.message), *said, END]
    for tokens_T in written.tokens_BT:
        assert tokens_T.tolist() == ids[: STAGE.num_tokens]


def test_every_part_of_a_turn_has_its_weight(written: Batch) -> None:
    decode = dialogue_tokenizer().decode
    texts: dict[float, set[str]] = {}
    for weight, place in runs(written.weight_BT[0]):
        if place.stop < STAGE.num_tokens:
            texts.setdefault(round(weight, 3), set()).add(decode(written.target_BT[0][place].tolist()).strip())
    assert texts.keys() == {0.0, MESSAGE_WEIGHT, TALK_WEIGHT, REPLY_WEIGHT, UNKNOWN_WEIGHT, VALUE_WEIGHT}
    assert texts[MESSAGE_WEIGHT] == {line.message for line in LINES}
    assert texts[TALK_WEIGHT] == {"Quite well."}
    assert texts[REPLY_WEIGHT] == {"Nice name!", "Your dog is called", ", I think."}
    assert texts[UNKNOWN_WEIGHT] == {"No idea."}
    assert texts[VALUE_WEIGHT] == {"Brenko"}
    assert texts[0.0] == {""}, "special tokens alone"


def test_where_a_reply_ends_is_learned_and_where_a_read_text_ends_is_not(written: Batch) -> None:
    ends = written.target_BT[0] == END
    weights = written.weight_BT[0][ends][: len(LINES)].tolist()
    assert weights == pytest.approx([REPLY_WEIGHT, TALK_WEIGHT, 0.0, UNKNOWN_WEIGHT, REPLY_WEIGHT])


def test_marks_are_exactly_the_values_tokens(written: Batch) -> None:
    assert torch.equal(written.value_BT, written.weight_BT == VALUE_WEIGHT)
    assert set(values_of(written)) == {"Brenko"}


def test_marked_values_were_told_before() -> None:
    decode = dialogue_tokenizer().decode
    num_values = 0
    for step in range(4):
        batch = dialogues().batch(step, STAGE)
        for row in range(STAGE.num_rows):
            for mark, place in runs(batch.value_BT[row]):
                if not mark or place.stop == STAGE.num_tokens:
                    continue
                value = decode(batch.target_BT[row][place].tolist()).strip().lower()
                assert value in decode(batch.tokens_BT[row][: place.start].tolist()).lower()
                num_values += 1
    assert num_values > 20


def test_a_right_answer_holds_its_values_tokens() -> None:
    encode = dialogue_tokenizer().encode
    num_asked = 0
    for seed in range(40):
        lines = Dialogue(random.Random(seed), talk(), open_share=0.6, dressed=True).lines(STAGE)
        for line in itertools.islice(lines, 20):
            if line.value is None or line.reply is None:
                continue
            reply, value = encode(line.reply), encode(line.value)
            starts = range(len(reply) - len(value) + 1)
            assert any(reply[at : at + len(value)] == value for at in starts), (line.reply, line.value)
            num_asked += 1
    assert num_asked > 100


def test_held_out_values_are_evaluations() -> None:
    training = [value for step in range(4) for value in values_of(dialogues().batch(step, STAGE))]
    evaluation = [value for step in range(4) for value in values_of(dialogues().batch(step, STAGE, held_out=True))]
    assert len(training) > 20
    assert not any(map(is_held_out, training))
    assert len(evaluation) > 20
    assert all(map(is_held_out, evaluation))


@pytest.mark.parametrize("flag", ["held_out", "held_out_phrases", "held_out_relations"])
def test_each_flag_reaches_the_dialogues_alone(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Dialogue] = []

    class Spied(Dialogue):
        def __post_init__(self) -> None:
            super().__post_init__()
            begun.append(self)

    monkeypatch.setattr(data_module, "Dialogue", Spied)
    dialogues().batch(0, STAGE, **{flag: True})
    assert len(begun) == STAGE.num_rows
    for dialogue in begun:
        for name in ("held_out", "held_out_phrases", "held_out_relations"):
            assert getattr(dialogue, name) == (name == flag)
        assert dialogue.open_share > 0
        assert dialogue.dressed


def test_texts_for_the_tokenizer_are_the_same_for_a_seed() -> None:
    texts = list(tokenizer_texts(talk(), 3, num_dialogues=20))
    assert texts == list(tokenizer_texts(talk(), 3, num_dialogues=20))
    assert texts != list(tokenizer_texts(talk(), 4, num_dialogues=20))
    assert len(texts) > 20 * 16


def test_a_dialogue_of_several_segments_goes_on_from_step_to_step() -> None:
    long, cut = Stage(120, 2, 4, 0.3), Stage(40, 2, 4, 0.3, segments=3)
    whole, data = dialogues().batch(6, long), dialogues()
    parts = [data.batch(step, cut) for step in (6, 7, 8)]
    assert torch.equal(torch.cat([part.tokens_BT for part in parts], 1), whole.tokens_BT)
    assert torch.equal(torch.cat([part.target_BT for part in parts], 1), whole.target_BT)
    assert [part.goes_on for part in parts] == [False, True, True]
    assert not same(data.batch(9, cut), parts[0])
    assert same(dialogues().batch(8, cut), parts[2]), "also where a run is resumed in the middle"


@pytest.fixture
def prose(tmp_path: Path) -> str:
    """A file of numbered sentences."""
    lines = "".join(f"Sentence number {number} of a long story.\n" for number in range(400))
    (tmp_path / "prose.txt").write_text(lines)
    return str(tmp_path / "prose.txt")


def with_text(prose: str, share: float) -> DialogueData:
    text = TextStream([prose], dialogue_tokenizer(), 1, buffer_rows=5)
    return DialogueData(dialogue_tokenizer(), talk(), 1, text, share)


@pytest.mark.parametrize(("share", "num_text"), [(0.5, [1, 2, 1, 2]), (0.2, [0, 1, 0, 1]), (1.0, [3] * 4)])
def test_text_has_its_share_of_the_rows(prose: str, share: float, num_text: list[int]) -> None:
    stage, data, alone = Stage(40, 3, 3, 0.3), with_text(prose, share), dialogues()
    for step, expected in enumerate(num_text):
        batch = data.batch(step, stage)
        is_text_B = (batch.weight_BT == torch.tensor(TEXT_WEIGHT)).all(1)
        assert int(is_text_B.sum()) == expected
        assert not batch.value_BT[is_text_B].any()
        assert torch.equal(batch.tokens_BT[: 3 - expected], alone.batch(step, stage).tokens_BT[: 3 - expected])
        for tokens_T in batch.tokens_BT[is_text_B]:
            assert "story" in dialogue_tokenizer().decode(tokens_T.tolist())


def test_text_goes_on_over_the_segments_like_a_dialogue(prose: str) -> None:
    long, cut = Stage(120, 2, 4, 0.3), Stage(40, 2, 4, 0.3, segments=3)
    data = with_text(prose, 0.5)
    parts = [data.batch(step, cut) for step in (0, 1, 2)]
    whole = with_text(prose, 0.5).batch(0, long)
    assert torch.equal(torch.cat([part.tokens_BT for part in parts], 1), whole.tokens_BT)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 6])
def test_text_is_taken_up_where_a_run_was_saved(prose: str, step: int) -> None:
    stage = Stage(40, 2, 3, 0.3, segments=3)
    data, resumed = with_text(prose, 0.5), with_text(prose, 0.5)
    for earlier in range(step):
        data.batch(earlier, stage)
    position = data.text_position(step, stage)
    assert position is not None
    resumed.go_on(position)
    for later in range(step, step + 4):
        assert same(resumed.batch(later, stage), data.batch(later, stage))


def test_without_text_there_is_no_place_in_it(prose: str) -> None:
    data = dialogues()
    assert data.text_position(0, STAGE) is None
    position = with_text(prose, 0.5).text_position(0, STAGE)
    assert position is not None
    data.go_on(position)
    assert same(data.batch(0, STAGE), dialogues().batch(0, STAGE))


def test_recall_counts_whole_values_and_tokens() -> None:
    value_BT = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1]]).bool()
    right_BT = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]]).bool()
    # The last value is cut off by the row's end.
    assert count_recalled(right_BT, value_BT) == (1, 3, 5, 7)

"""Intents: read from both forms of file, split by name, short utterances, episodes and streams without a leak."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from engine.errors import InvalidRequest
from engine.evaluation.tasks.intents import (
    IntentEpisodes,
    StreamPlan,
    corpus_of,
    rarest,
    read_clinc,
    read_csv,
    split_intents,
)
from engine.tokenizer import ASSISTANT
from tests.engine.evaluation.tasks.samples import utterances, write_clinc
from tests.tiny import tiny_tokenizer

PLAN = StreamPlan(num_tasks=3, classes_per_task=1, shots=2, queries=3)


def task(easy_steps: int = 0, max_tokens: int = 4) -> IntentEpisodes:
    texts = utterances(12, 6)
    trained, tested = split_intents([intent for _, intent in texts], 4)
    corpus = corpus_of(texts, texts, trained, tiny_tokenizer(), max_tokens)
    vocab = tiny_tokenizer().vocab_size
    return IntentEpisodes(
        *(corpus, trained, tested, vocab, 20), batch_tokens=384, row_tokens=96, group=2, easy_steps=easy_steps
    )


def test_clinc_is_read_without_what_is_out_of_scope(tmp_path: Path) -> None:
    train, test = read_clinc(write_clinc(tmp_path / "data"))
    assert len(train) == len(test) == 72
    assert train[0] == ("dog dog 0 and so", "intent_0")
    assert "oos" not in {intent for _, intent in train}
    for data in (None, tmp_path):
        with pytest.raises(InvalidRequest, match=r"data_full\.json"):
            read_clinc(data)


def test_a_csv_file_has_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('text,category\n"I lost it, help",lost_card\nWhere is it?,card_arrival\n')
    assert read_csv(path) == [("I lost it, help", "lost_card"), ("Where is it?", "card_arrival")]
    path.write_text("utterance,label\nWhere is it?,card_arrival\n")
    with pytest.raises(InvalidRequest, match="columns text and category"):
        read_csv(path)
    with pytest.raises(InvalidRequest, match="no file"):
        read_csv(tmp_path / "other.csv")


def test_classes_are_split_by_name_whatever_their_order() -> None:
    names = [f"intent_{number}" for number in range(12)]
    trained, tested = split_intents(names * 2, 4)
    assert split_intents(names[::-1], 4) == (trained, tested)
    assert len(tested) == 4
    assert {*trained, *tested} == set(names)
    with pytest.raises(InvalidRequest, match="leave none"):
        split_intents(names, 11)


def test_what_is_left_of_an_utterance_is_its_rarest_tokens_in_order() -> None:
    counted = {5: 9, 6: 1, 7: 9, 8: 2}
    assert rarest([5, 6, 7, 8], counted, 2) == [6, 8]
    assert rarest([5, 6, 7, 9], counted, 2) == [6, 9], "what was never counted is rarest"
    assert rarest([5, 6, 7, 8], counted, 0) == rarest([5, 6, 7, 8], counted, 4) == [5, 6, 7, 8]


@pytest.mark.parametrize("easy_steps", [0, 1])
def test_only_labels_that_can_be_known_count(easy_steps: int) -> None:
    episodes = task(easy_steps)
    examples = episodes.training(0, 0)
    assert bool(examples.counts_BT.any(1).all())
    for tokens, targets, counts in zip(
        examples.tokens_BT.tolist(), examples.target_BT.tolist(), examples.counts_BT.tolist(), strict=True
    ):
        seen = {tokens[0]} & set(episodes.labels)
        for target, counted in zip(targets, counts, strict=True):
            assert counted == (target in seen)
            seen |= {target} & set(episodes.labels)


def test_a_step_is_the_same_every_time_and_labels_are_drawn_anew() -> None:
    episodes = task()
    one, again, other = episodes.training(0, 3), task().training(0, 3), episodes.training(0, 4)
    assert one.tokens_BT.shape == (4, 96)
    assert one.tokens_BT.equal(again.tokens_BT)
    assert not one.tokens_BT.equal(other.tokens_BT)
    assert not episodes.validation(0).tokens_BT.equal(next(episodes.tests(0))[1].tokens_BT)
    own = {tuple(one) for one in episodes.corpus.shown[episodes.trained[0]]}
    labels = set()
    for step in range(40):
        for row in episodes.training(1, step).tokens_BT.tolist():
            told = [at for at in range(5, 96) if row[at] in episodes.labels and tuple(row[at - 5 : at - 1]) in own]
            labels |= {row[at] for at in told}
    assert len(labels) > 4, "a class has no label of its own"


def test_easy_rows_come_first_and_go() -> None:
    episodes = task(easy_steps=10, max_tokens=0)

    def repeated(row: Tensor) -> bool:
        """Whether every label follows one and the same utterance."""
        found: dict[int, set[tuple[int, ...]]] = {}
        start = 0
        for at, token in enumerate(row.tolist()):
            if token in episodes.labels:
                found.setdefault(token, set()).add(tuple(row[start:at].tolist()))
                start = at + 1
        return all(len(utterances_of) == 1 for utterances_of in found.values())

    num_easy = [sum(map(repeated, episodes.training(0, step).tokens_BT)) for step in (0, 5, 10)]
    assert num_easy == [4, 2, 0]
    assert episodes.training(0, 10).tokens_BT.equal(task(max_tokens=0).training(0, 10).tokens_BT)


def test_training_never_holds_a_tested_class_and_a_stream_holds_no_other() -> None:
    episodes = task()
    own = {tuple(one) for intent in episodes.tested for one in episodes.corpus.shown[intent]}
    texts = [stage.shown + stage.asked for seed in range(5) for stage in episodes.stream(seed, PLAN)]
    assert {tuple(one) for stage in texts for one, _ in stage} <= own
    words = {token for one in own for token in one} - {
        token for intent in episodes.trained for one in episodes.corpus.shown[intent] for token in one
    }
    assert words, "the tested classes have tokens of their own"
    for step in range(20):
        assert not words & set(episodes.training(0, step).tokens_BT.flatten().tolist())
    trained = episodes.stream(0, PLAN, tested=False)
    assert not {tuple(one) for stage in trained for one, _ in stage.shown} & own


def test_a_stream_comes_task_by_task() -> None:
    stages = task().stream(0, PLAN)
    assert [len(stage.shown) for stage in stages] == [2, 2, 2]
    assert [len(stage.asked) for stage in stages] == [3, 3, 3]
    labels = [stage.labels for stage in stages]
    assert len({label for own in labels for label in own}) == 3
    utterance, label = stages[0].shown[0]
    assert stages[0].text()[: len(utterance) + 2] == [*utterance, ASSISTANT, label]
    assert task().stream(1, PLAN) != stages


@pytest.mark.parametrize("plan", [StreamPlan(5, 1, 2, 3), StreamPlan(3, 1, 7, 3), StreamPlan(3, 1, 2, 7)])
def test_more_than_there_is_cannot_be_asked_for(plan: StreamPlan) -> None:
    with pytest.raises(InvalidRequest, match=r"more than|fewer than"):
        task().stream(0, plan)

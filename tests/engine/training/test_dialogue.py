"""One dialogue (`data.py`): what is told is what is answered, and nothing of evaluation's is ever said in training."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator

import pytest

from engine.training.dialogue import Dialogue, Fact, Line, Stage
from engine.training.open_relations import is_held_out_word, load_open_words
from engine.training.relations import load_relations, load_small_talk
from engine.training.values import is_held_out
from tests.engine.training.samples import talk

STAGE = Stage(num_tokens=0, num_rows=0, most_facts=8, talk=0.4)
FIXED = {relation.name: relation for relation in load_relations()}
OPEN_WORDS = {
    word
    for family in load_open_words().families
    for word in (*family.nouns, *(noun for noun, _ in family.attributes), *(verb.base for verb in family.verbs))
}
NUM_DIALOGUES, NUM_LINES = 800, 25
# Where a told or asked sentence can begin in a message: at its start, after another, behind "By the way, ".
BEGINS = r"(?:^|[.!?:,] |\band |\bthat )"


def training_lines() -> Iterator[tuple[Dialogue, Line]]:
    """What training says, with the dialogue as it stands after each line."""
    for seed in range(NUM_DIALOGUES):
        dialogue = Dialogue(random.Random(seed), talk(), open_share=0.6, dressed=True)
        for line in itertools.islice(dialogue.lines(STAGE), NUM_LINES):
            yield dialogue, line


def says_as_evaluation_would(message: str, fact: Fact) -> bool:
    """Whether one of its sentences is a way to tell or ask the fact that belongs to evaluation."""
    wordings = (bare(fact.fill(text)) for kind in ("tell", "ask") for text in getattr(fact.relation, kind)[-2:])
    return any(re.search(rf"{BEGINS}{re.escape(wording)}(?!\w)", bare(message)) for wording in wordings)


def bare(text: str) -> str:
    return text.lower().rstrip("?.!")


def test_nothing_of_evaluations_is_said_in_training() -> None:
    num_facts, seen = 0, set()
    for dialogue, line in training_lines():
        assert line.value is None or not is_held_out(line.value)
        for fact in dialogue.facts:
            num_facts += 1
            assert not is_held_out(fact.value)
            assert fact.entity is None or not is_held_out(fact.entity)
            seen.add(fact.relation.name)
            assert not says_as_evaluation_would(line.message, fact), line.message
    assert num_facts > 1000
    fixed = seen & FIXED.keys()
    known = {name for name, relation in FIXED.items() if not relation.held_out}
    assert fixed <= known
    assert len(fixed) > 0.9 * len(known)
    opened = seen - fixed
    assert len(opened) > 300
    for name in opened:
        words = [word for word in OPEN_WORDS if name.endswith(" " + word)]
        longest = max(words, key=len, default="work")
        assert longest == "work" or not is_held_out_word(longest), name


def test_a_wording_of_evaluations_would_be_found() -> None:
    fact = Fact(FIXED["dog_name"], None, "Rex")
    for kind in ("tell", "ask"):
        for text in getattr(fact.relation, kind)[-2:]:
            for before in ("", "By the way, ", "It rains. ", "My cat is old, and ", "Please remember that "):
                assert says_as_evaluation_would(before + fact.fill(text).lower() + " Don't forget it.", fact)
    assert not says_as_evaluation_would("My dog is called Rex.", fact)


def test_held_out_relations_are_evaluations() -> None:
    for seed in range(40):
        dialogue = Dialogue(random.Random(seed), talk(), held_out_relations=True)
        assert FIXED[dialogue.new_fact().relation.name].held_out


def test_facts_are_told_with_their_values_as_they_are() -> None:
    num_told = 0
    for seed in range(800):
        dialogue = Dialogue(random.Random(seed), talk(), open_share=0.6, dressed=True)
        for _ in range(4):
            before = len(dialogue.facts)
            line = dialogue.tell(echo=1.0)
            for fact in dialogue.facts[before:]:
                assert fact.value in line.message, line.message
                num_told += 1
            assert line.reply is not None
            assert dialogue.facts[-1].value.lower() in line.reply.lower(), "an echo says the value"
            assert line.value is None
    assert num_told > 3300, "some messages tell two facts"


def test_now_and_then_a_value_is_of_another_kind() -> None:
    dialogue = Dialogue(random.Random(0), talk())
    dialogue.relations = [relation for relation in dialogue.relations if relation.value == "name"]
    odd = 0
    for _ in range(2000):
        dialogue.facts = []
        odd += not dialogue.new_fact().value.istitle()
    assert 0.04 < odd / 2000 < 0.15


def test_a_corrected_fact_is_answered_with_its_new_value() -> None:
    num_changed = 0
    for seed in range(200):
        dialogue = Dialogue(random.Random(seed), talk(), open_share=0.6)
        dialogue.tell(echo=0.5)
        fact = dialogue.facts[0]
        told = fact.value
        dialogue.facts[1:] = []
        changed = dialogue.change(echo=1.0)
        assert fact.value in changed.message
        assert changed.reply is not None
        assert fact.value in changed.reply
        asked = dialogue.ask(fact)
        assert asked.value == fact.value
        assert asked.reply is not None
        assert fact.value in asked.reply
        num_changed += fact.value != told
    assert num_changed > 190


def test_an_unknown_fact_is_not_known() -> None:
    unknown = load_small_talk().unknown
    for seed in range(200):
        dialogue = Dialogue(random.Random(seed), talk())
        for _ in range(3):
            dialogue.tell(echo=0.5)
        facts = list(dialogue.facts)
        line = dialogue.ask_unknown()
        assert line.reply in unknown
        assert line.is_unknown
        assert line.value is None
        assert dialogue.facts == facts
        answerable = {bare(fact.fill(text)) for fact in facts for text in fact.relation.ask}
        assert bare(line.message) not in answerable


def test_what_to_ask_is_what_the_turn_before_told() -> None:
    phrases, asked = load_small_talk(), {True: 0, False: 0}
    for seed in range(300):
        dialogue = Dialogue(random.Random(seed), talk(), open_share=0.5, dressed=True)
        for line in itertools.islice(dialogue.lines(STAGE), NUM_LINES):
            if line.message not in phrases.to_ask:
                continue
            questions = {
                fact.fill(text) for fact in dialogue.news for text in fact.relation.phrases("ask", held_out=False)
            }
            asked[bool(questions)] += 1
            assert line.reply in (questions or phrases.nothing_to_ask)
    assert min(asked.values()) > 100


def test_no_fact_is_told_twice() -> None:
    for seed in range(20):
        dialogue = Dialogue(random.Random(seed), talk(), open_share=0.6)
        for _ in range(30):
            dialogue.tell(echo=0.5)
        told = [(fact.relation.name, fact.entity) for fact in dialogue.facts]
        assert len(told) == len(set(told))


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.0, 0.0), (0.6, 0.5, 0.7), (1.0, 1.0, 1.0)])
def test_the_open_share_of_facts_is_open(share: float, least: float, most: float) -> None:
    names = [Dialogue(random.Random(seed), talk(), open_share=share).new_fact().relation.name for seed in range(400)]
    assert least <= sum(name not in FIXED for name in names) / len(names) <= most


def test_undressed_sentences_are_the_templates_own() -> None:
    for seed in range(100):
        dialogue = Dialogue(random.Random(seed), talk())
        line = dialogue.tell(echo=0.5)
        if len(dialogue.facts) == 1:
            fact = dialogue.facts[0]
            assert line.message in {fact.fill(text) for text in fact.relation.phrases("tell", held_out=False)}


def test_dressing_varies_what_stands_around_a_sentence() -> None:
    plain: set[str] = set()
    dressed: set[str] = set()
    relation = FIXED["dog_name"]
    for seed in range(300):
        for found, dress in ((plain, False), (dressed, True)):
            dialogue = Dialogue(random.Random(seed), talk(), dressed=dress)
            fact = Fact(relation, None, "Brenko")
            dialogue.facts.append(fact)
            found.add(bare(dialogue.ask(fact).message))
    assert plain == {bare(text) for text in relation.phrases("ask", held_out=False)}
    assert len(dressed) > 5 * len(plain)


def test_talk_takes_at_most_its_share_and_asks_nothing_back() -> None:
    silent = Stage(0, 0, most_facts=8, talk=0.0)
    shares = {}
    for stage in (silent, STAGE):
        lines = [
            line
            for seed in range(40)
            for line in itertools.islice(Dialogue(random.Random(seed), talk()).lines(stage), NUM_LINES)
        ]
        shares[stage.talk] = sum(line.is_talk for line in lines) / len(lines)
        assert all(line.value is None for line in lines if line.is_talk)
    assert shares[0.0] < 0.03, "paragraphs to read alone"
    assert 0.1 < shares[STAGE.talk] < 0.45

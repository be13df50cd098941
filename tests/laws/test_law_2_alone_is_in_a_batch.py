"""Law 2. Alone = in a batch: a session's reply and memory do not depend on who else is in the batch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.core import Turn
from engine.engine import Engine
from engine.model.hope import Hope, Memory
from engine.runner import Runner
from tests.engines import Recorder, loaded, opened, say, stored_memory
from tests.tiny import (
    CONFIGURATIONS,
    MODELS,
    distance,
    initial,
    memory_distance,
    named_model,
    random_tokens,
    row_of,
    stacked,
)

TOLERANCE = 1e-4
# What is stored has 8 significant bits: numbers that agree in float32 may round to neighbours, up to 2^-8 apart.
STORED_TOLERANCE = 2.0**-8


@torch.no_grad()
def _read(model: Hope, memory: Memory, tokens: Tensor) -> tuple[Tensor, Memory]:
    out: tuple[Tensor, Memory] = model(tokens, memory)
    return out


def _after(model: Hope, num_tokens: int) -> Memory:
    """The memory of a row that has read so many tokens."""
    if not num_tokens:
        return initial(model)
    return _read(model, initial(model), random_tokens(model, 1, num_tokens, seed=num_tokens))[1]


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_2_a_row_of_the_model_is_as_alone(name: str) -> None:
    model = named_model(name)
    chunk = model.config.chunk_memory
    starts, lengths = [0, 5, 3 * chunk - 1, chunk], [2 * chunk + 3, 1, 7, 0]
    tokens = random_tokens(model, 4, max(lengths))
    before = [_after(model, start) for start in starts]
    batch = stacked(before)
    with torch.no_grad():
        logits, after = model(tokens, batch, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone, memory = _read(model, before[row], tokens[row : row + 1, :length])
        assert distance(logits[row : row + 1, :length], alone) <= TOLERANCE
        assert memory_distance(row_of(after, row), memory) <= TOLERANCE


@pytest.mark.parametrize("name", [*MODELS, *CONFIGURATIONS])
def test_law_2_not_one_bit_of_another_row_comes_over(name: str) -> None:
    model = named_model(name)
    chunk = model.config.chunk_memory
    lengths = torch.tensor([2 * chunk + 3, 2, chunk])
    tokens = random_tokens(model, 3, 2 * chunk + 3)
    others = random_tokens(model, 3, 2 * chunk + 3, seed=77)
    others[0] = tokens[0]
    with torch.no_grad():
        logits, memory = model(tokens, initial(model, 3), lengths)
        changed = {key: value.clone() for key, value in initial(model, 3).items()}
        for value in changed.values():
            if value.is_floating_point():
                value[1:] += torch.randn_like(value[1:]) * 0.1
        among_others, memory_among_others = model(others, changed, lengths)
    assert torch.equal(among_others[0], logits[0])
    assert not torch.equal(among_others[1, :2], logits[1, :2])
    for key, value in memory.items():
        assert torch.equal(memory_among_others[key][0], value[0]), key


# The state of attention grows with the text: the runner's batches do not hold it.
@pytest.mark.parametrize("name", [name for name in (*MODELS, *CONFIGURATIONS) if name != "attention"])
def test_law_2_rows_that_come_and_go_do_not_disturb_one_that_stays(name: str) -> None:
    model = named_model(name)
    text = random_tokens(model, 1, 30)[0].tolist()
    alone, logits_alone = Runner(model), []
    alone.enter({1: initial(model)})
    crowd, logits_crowd = Runner(model), []
    crowd.enter({5: initial(model)})
    crowd.enter({1: initial(model)})
    for step, start in enumerate(range(0, 30, 3)):
        mine = text[start : start + 3]
        logits_alone.append(alone.step({1: mine})[1])
        if step == 2:
            crowd.enter({9: initial(model)})
        if step == 4:
            crowd.leave([5])
        if step == 6:
            crowd.enter({2: initial(model)})
        # One reads much, one speaks a token at a time, one pauses every other step.
        asked = {1: mine, 5: text[:7], 9: [text[step]]} | ({2: text[:2]} if step % 2 else {})
        present = {1, 5} if step < 2 else {1, 5, 9} if step < 4 else {1, 9} if step < 6 else {1, 9, 2}
        logits_crowd.append(crowd.step({row: ids for row, ids in asked.items() if row in present})[1])
    assert distance(torch.cat(logits_crowd), torch.cat(logits_alone)) <= TOLERANCE
    assert memory_distance(crowd.memory(1), alone.memory(1)) <= TOLERANCE


MESSAGES = (
    "My dog is called Brenko and he loves the snow, the river and long walks in the evening.",
    "What is the name of my dog?",
    "Actually, he is called Max now.",
)


async def _conversation(engine: Engine, session_id: str, **request: Any) -> list[Turn]:
    await engine.create_session("acme", session_id, {}, False)
    return [await say(engine, session_id, message, max_tokens=24, **request) for message in MESSAGES]


async def _noise(engine: Engine, index: int) -> None:
    """A neighbour that reads a long text, speaks, and learns or does not."""
    name = f"noise-{index}-{engine.redis_url[-4:]}-{id(engine)}"
    await engine.create_session("acme", name, {}, False)
    for turn in range(2):
        text = f"Neighbour {index} tells of {'mountains and ' * (5 + 9 * index)}rivers."
        await say(engine, name, text, max_tokens=8 + 11 * index, temperature=0.9, seed=turn, learn=index % 2 == 0)


async def test_law_2_a_session_of_the_engine_is_as_alone(redis_url: str, engine_model: str) -> None:
    recorder = Recorder()
    async with opened(redis_url, loaded(engine_model), recorder, max_batch_rows=8) as engine:
        alone = await _conversation(engine, f"alone-{engine_model}")
        assert max(recorder.batches) == 1
        async with asyncio.TaskGroup() as crowd:
            for index in range(4):
                crowd.create_task(_noise(engine, index))
            greedy = crowd.create_task(_conversation(engine, f"together-{engine_model}"))
            sampled = crowd.create_task(_conversation(engine, f"drawn-{engine_model}", temperature=0.8, seed=5))
        together, drawn = greedy.result(), sampled.result()
        assert max(recorder.batches) > 3, "the neighbours must really share the batch"
        assert [turn.reply for turn in together] == [turn.reply for turn in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.memory.surprise == pytest.approx(other.memory.surprise, rel=TOLERANCE)
        # A sampled reply too: the dice are the row's own.
        drawn_alone = await _conversation(engine, f"drawn-alone-{engine_model}", temperature=0.8, seed=5)
        assert [turn.reply for turn in drawn] == [turn.reply for turn in drawn_alone]
        assert [turn.reply for turn in drawn] != [turn.reply for turn in alone]
        memory = await stored_memory(engine, f"together-{engine_model}")
        expected = await stored_memory(engine, f"alone-{engine_model}")
        assert memory_distance(memory, expected) <= STORED_TOLERANCE

"""A turn as a transaction: what it shows is what the store holds; order, versions, seeds, stop strings, the worker's
line, and a caller who leaves at any moment; over a real store."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from redis.asyncio import Redis

from engine.config import CMS_FAST, CMS_MEDIUM, CMS_SLOW, TITANS
from engine.core import Turn, TurnCompleted, TurnCreated, TurnEvent, TurnRequest, TurnToken
from engine.engine import Engine
from engine.errors import Conflict, DeadlineExceeded, NotFound
from engine.sessions import keys
from engine.tokenizer import END
from engine.turns import digest_of
from tests.engine.loops import FOREVER, tireless
from tests.engines import TENANT, Recorder, loaded, opened, say
from tests.tiny import tiny_tokenizer

MESSAGE = "My dog is called Rex and he likes the river."


async def _session(engine: Engine) -> str:
    return (await engine.create_session(TENANT, None, {}, False)).id


async def _transcript(engine: Engine, session_id: str) -> list[Turn]:
    turns, more = await engine.turns(TENANT, session_id, 100, None)
    assert not more
    return turns


async def test_a_turn_says_what_it_did(redis_url: str) -> None:
    async with opened(redis_url, (tireless(), tiny_tokenizer())) as engine:
        session_id = await _session(engine)
        first = await say(engine, session_id, MESSAGE, max_tokens=6)
        second = await say(engine, session_id, "What is his name?", max_tokens=4)
        session = await engine.session(TENANT, session_id)
        stored = await _transcript(engine, session_id)
    prompt = len(tiny_tokenizer().read_turn(MESSAGE, reply=True))
    assert (first.object, first.session_id, first.message) == ("turn", session_id, MESSAGE)
    assert (first.index, second.index) == (0, 1)
    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.total_tokens) == (
        *(prompt, 6),
        prompt + 6,
    )
    assert first.finish_reason == "length"
    assert (first.memory.version, first.memory.generation, first.memory.learned) == (1, 0, True)
    assert 0.0 < first.memory.surprise < 50.0
    assert [level.name for level in first.memory.levels] == [TITANS, CMS_FAST, CMS_MEDIUM, CMS_SLOW]
    assert [level.updates for level in second.memory.levels][1:] == [2, 0, 0]
    assert second.memory.levels[0].updates > first.memory.levels[0].updates > 0
    assert first.id != second.id
    assert first.created_at < second.created_at
    for turn in (first, second):
        timing = turn.timing
        assert 0.0 <= timing.queue_ms <= timing.first_token_ms <= timing.total_ms
        assert 0.0 < timing.commit_ms <= timing.total_ms
    assert (session.version, session.num_turns) == (2, 2)
    assert session.num_tokens == first.usage.total_tokens + second.usage.total_tokens
    assert session.memory_bytes > 0
    # How long the commit took is not known yet when it is written; all else is the same.
    assert [replace(turn, timing=first.timing) for turn in stored] == [first, replace(second, timing=first.timing)]


async def test_a_turn_that_learns_nothing_moves_nothing(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        session_id = await _session(engine)
        learned = await say(engine, session_id, MESSAGE)
        before = await engine.session(TENANT, session_id)
        asked = [await say(engine, session_id, "What is his name?", learn=False, idempotency_key="k") for _ in range(2)]
        assert await engine.session(TENANT, session_id) == before
        assert len(await _transcript(engine, session_id)) == 1
    for turn in asked:
        assert (turn.memory.version, turn.memory.learned, turn.index, turn.timing.commit_ms) == (1, False, 1, 0.0)
        assert turn.memory.levels == learned.memory.levels
    assert asked[0].reply == asked[1].reply
    assert asked[0].id != asked[1].id


async def test_a_document_is_read_without_a_reply(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        turn = await say(engine, await _session(engine), MESSAGE, max_tokens=0)
    assert (turn.reply, turn.finish_reason, turn.usage.completion_tokens) == ("", "stop", 0)
    assert (turn.memory.learned, turn.memory.version) == (True, 1)


async def test_events_come_in_order_and_add_up_to_the_reply(redis_url: str) -> None:
    async with opened(redis_url, (tireless(), tiny_tokenizer())) as engine:
        request = TurnRequest(MESSAGE, temperature=1.0, seed=3, max_tokens=20)
        events = [event async for event in engine.turn(TENANT, await _session(engine), request)]
    created, *pieces, completed = events
    assert isinstance(created, TurnCreated)
    assert isinstance(completed, TurnCompleted)
    tokens = [piece for piece in pieces if isinstance(piece, TurnToken)]
    assert len(tokens) == len(pieces) > 1
    assert [piece.index for piece in tokens] == list(range(len(tokens)))
    assert all(piece.text for piece in tokens)
    assert "".join(piece.text for piece in tokens) == completed.turn.reply
    assert {created.turn_id, completed.turn.id, *(piece.turn_id for piece in tokens)} == {created.turn_id}


async def test_a_stop_string_cuts_the_reply(redis_url: str) -> None:
    async with opened(redis_url, (tireless(), tiny_tokenizer())) as engine:

        async def reply(*stop: str) -> Turn:
            return await say(engine, await _session(engine), MESSAGE, temperature=1.0, seed=5, max_tokens=40, stop=stop)

        whole = await reply()
        middle = whole.reply[len(whole.reply) // 2 :][:3]
        assert len(middle) == 3
        cut = await reply("never said by anyone", middle)
    assert whole.finish_reason == "length"
    assert cut.finish_reason == "stop"
    assert cut.reply == whole.reply.split(middle)[0]
    assert cut.usage.completion_tokens < whole.usage.completion_tokens


async def test_a_reply_that_the_model_ends_by_itself(redis_url: str) -> None:
    model, tokenizer = loaded()
    with torch.no_grad():
        model.embedding.weight[END] *= 3  # a model of few words
    async with opened(redis_url, (model, tokenizer)) as engine:
        for seed in range(50):
            turn = await say(engine, await _session(engine), MESSAGE, temperature=1.0, seed=seed, max_tokens=40)
            if turn.finish_reason == "stop" and turn.reply:
                break
    assert (turn.finish_reason, turn.memory.version) == ("stop", 1)
    assert 0 < turn.usage.completion_tokens < 40


async def test_a_seed_gives_the_same_reply_again(redis_url: str) -> None:
    async with opened(redis_url, (tireless(), tiny_tokenizer())) as engine:

        async def reply(seed: int | None, **request: Any) -> str:
            asked = {"temperature": 1.0, "max_tokens": 24, "seed": seed, **request}
            return (await say(engine, await _session(engine), MESSAGE, **asked)).reply

        assert await reply(7) == await reply(7) != await reply(8)
        assert await reply(None) != await reply(None)
        assert await reply(7, temperature=0.0) == await reply(8, temperature=0.0)
        # So small a share of the probability is the most likely token alone.
        assert await reply(7, top_p=1e-9) == await reply(8, temperature=0.0)


@pytest.mark.parametrize("learn", [True, False])
async def test_a_turn_meant_for_another_version_is_refused(redis_url: str, learn: bool) -> None:
    async with opened(redis_url) as engine:
        session_id = await _session(engine)
        assert (await say(engine, session_id, "one", if_version=0)).memory.version == 1
        for wrong in (0, 2):
            with pytest.raises(Conflict, match="at version 1") as refusal:
                await say(engine, session_id, "two", if_version=wrong, learn=learn)
            assert refusal.value.param == "if_version"
        assert (await say(engine, session_id, "two", if_version=1, learn=learn)).memory.version == 1 + learn
        assert len(await _transcript(engine, session_id)) == 1 + learn


async def test_a_key_seen_before_gives_the_stored_turn_and_another_request_is_a_conflict(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        session_id = await _session(engine)
        first = await say(engine, session_id, MESSAGE, idempotency_key="once")
        request = TurnRequest(MESSAGE, temperature=0.0, max_tokens=6, idempotency_key="once")
        events = [event async for event in engine.turn(TENANT, session_id, request)]
        assert [type(event) for event in events] == [TurnCreated, TurnToken, TurnCompleted]
        replayed = await say(engine, session_id, MESSAGE, idempotency_key="once")
        assert replace(replayed, timing=first.timing) == first
        for change in ({"max_tokens": 5}, {"seed": 1}, {"learn": False}):
            with pytest.raises(Conflict):
                await say(engine, session_id, MESSAGE, idempotency_key="once", **change)
        assert (await engine.session(TENANT, session_id)).version == 1
        assert (await say(engine, session_id, MESSAGE, idempotency_key="twice")).memory.version == 2


async def test_turns_of_one_session_run_in_the_order_they_came(redis_url: str) -> None:
    async with opened(redis_url) as engine:
        session_id = await _session(engine)
        messages = [f"Number {number}." for number in range(6)]
        turns = await asyncio.gather(*(say(engine, session_id, message, max_tokens=2) for message in messages))
        assert [turn.index for turn in turns] == list(range(6))
        assert [turn.memory.version for turn in turns] == list(range(1, 7))
        assert [turn.message for turn in await _transcript(engine, session_id)] == messages


async def test_a_turn_behind_a_long_one_has_a_deadline_of_its_own(redis_url: str) -> None:
    async with opened(redis_url, (tireless(), tiny_tokenizer())) as engine:
        session_id = await _session(engine)
        events = engine.turn(TENANT, session_id, TurnRequest(MESSAGE, temperature=0.0, max_tokens=FOREVER))
        await anext(events)
        await anext(events)
        with pytest.raises(DeadlineExceeded):
            await say(engine, session_id, MESSAGE, timeout_s=0.1)
        await events.aclose()
        assert (await say(engine, session_id, MESSAGE)).memory.version == 1


async def test_memory_comes_from_the_cache_only_while_it_is_the_head(redis_url: str) -> None:
    here, there = Recorder(), Recorder()
    async with opened(redis_url, observer=here) as engine, opened(redis_url, observer=there) as other:
        session_id = await _session(engine)
        for speaker in (engine, engine, other, engine):
            await say(speaker, session_id, MESSAGE, max_tokens=1)
        assert (await engine.session(TENANT, session_id)).version == 4
        await engine.delete_session(TENANT, session_id)
        with pytest.raises(NotFound):
            await say(engine, session_id, MESSAGE)
    loads = [[outcome for operation, outcome in r.transfers if operation == "load"] for r in (here, there)]
    assert loads == [["redis", "resident", "redis"], ["redis"]]
    assert here.transfers.count(("commit", "ok")) == 3
    assert here.residents[-1][0] == 1
    assert here.residents[-1][1] > 0


async def _due_in_s(redis_url: str, session_id: str) -> float | None:
    """Seconds until the worker may take the session; None where it is not in line."""
    client = Redis.from_url(redis_url)
    try:
        due_ms = await client.zscore(keys.WORK_DUE, keys.session_name(TENANT, session_id))
    finally:
        await client.aclose()
    return None if due_ms is None else due_ms / 1000 - time.time()


async def test_a_session_is_handed_to_the_worker_every_so_many_turns_and_when_quiet(redis_url: str) -> None:
    async with opened(redis_url, turns_per_consolidation=3, idle_consolidation_s=200.0) as engine:
        session_id = await _session(engine)
        await say(engine, session_id, "one", learn=False)
        assert await _due_in_s(redis_url, session_id) is None
        due: list[float | None] = []
        for word in ("one", "two", "three", "four"):
            await say(engine, session_id, word, max_tokens=1)
            due.append(await _due_in_s(redis_url, session_id))
    quiet, due_now = due[:2], due[2:]
    assert all(left is not None and 150.0 < left <= 200.5 for left in quiet)
    # Every third turn at once; and what is due already is not put off by the next turn.
    assert all(left is not None and left <= 0.5 for left in due_now)


async def test_every_turn_puts_the_quiet_time_off(redis_url: str) -> None:
    async with opened(redis_url, idle_consolidation_s=200.0) as engine:
        session_id = await _session(engine)
        await say(engine, session_id, "one", max_tokens=1)
        await asyncio.sleep(0.2)
        before = await _due_in_s(redis_url, session_id)
        await say(engine, session_id, "two", max_tokens=1)
        after = await _due_in_s(redis_url, session_id)
    assert before is not None
    assert after is not None
    assert before < 199.85 < after


class _LeavesAfterTheCommit(Recorder):
    """Its caller goes away so many turns of the event loop after the store has taken the turn."""

    task: asyncio.Task[list[TurnEvent]] | None = None
    patience = 0

    def stored(self, operation: str, outcome: str, seconds: float, size_bytes: int) -> None:
        super().stored(operation, outcome, seconds, size_bytes)
        if operation == "commit":
            self._leave(self.patience)

    def _leave(self, patience: int) -> None:
        if patience:
            asyncio.get_running_loop().call_soon(self._leave, patience - 1)
        elif self.task is not None:
            self.task.cancel()


async def test_law_7_who_leaves_after_the_commit_is_not_told_that_nothing_was_learned(redis_url: str) -> None:
    observer = _LeavesAfterTheCommit()
    async with opened(redis_url, observer=observer, idle_consolidation_s=200.0) as engine:

        async def run(session_id: str) -> list[TurnEvent]:
            request = TurnRequest(MESSAGE, temperature=0.0, max_tokens=1)
            return [event async for event in engine.turn(TENANT, session_id, request)]

        for observer.patience in range(12):
            session_id = await _session(engine)
            observer.task = asyncio.create_task(run(session_id))
            await asyncio.wait({observer.task})
            assert (await engine.session(TENANT, session_id)).version == 1
    assert observer.outcomes == ["completed"] * 12


def test_keys_used_before_a_field_was_offered_stay_good() -> None:
    digest = "e4aaec15538cf2555476b2c320a085b8d7db9fb7e1b8e0c469c5866c46500e91"
    assert digest_of(TurnRequest("a")) == digest != digest_of(TurnRequest("a", top_logprobs=0))

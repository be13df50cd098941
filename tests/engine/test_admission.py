"""Who may begin a turn: limits that all replicas share, and what a turn is charged."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from engine.core import Said, TurnRequest
from engine.errors import RateLimited, TooLarge
from engine.sessions.keys import SessionKeys, limit_bucket
from engine.sessions.limits import LEARNED, TOKENS
from tests.engines import TENANT, Recorder, opened, say


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def level(redis_url: str, kind: str) -> float:
    """The credit that was left when it was last looked at."""
    client = Redis.from_url(redis_url)
    found = await client.hget(limit_bucket(TENANT, kind), "level")
    await client.aclose()
    assert found is not None
    return float(found)


async def test_turns_of_all_replicas_count(redis_url: str) -> None:
    recorder = Recorder()
    limited = opened(redis_url, None, recorder, turns_per_minute=3)
    async with limited as engine, opened(redis_url, turns_per_minute=3) as other:
        await engine.create_session(TENANT, "s", {}, False)
        await engine.create_session("else", "s", {}, False)
        for one in (engine, other, engine):
            await say(one, "s", "Hello.")
        for one in (engine, other):
            with pytest.raises(RateLimited) as refused:
                await say(one, "s", "Hello.")
            assert 0 < (refused.value.retry_after_s or 0) <= 20
        assert (await engine.session(TENANT, "s")).version == 3
        await say(engine, "s", "Hello.", "else")
    assert recorder.outcomes == ["completed", "completed", "refused", "completed"]


async def test_what_a_turn_used_is_charged_and_a_repeat_is_not(redis_url: str) -> None:
    async with opened(redis_url, tokens_per_minute=60, learned_tokens_per_minute=60) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        for _ in range(2):
            turn = await say(engine, "s", "My dog is called Rex.", idempotency_key="k")
            for kind in (TOKENS, LEARNED):
                # A little of it may have come back.
                assert await level(redis_url, kind) == pytest.approx(60 - turn.usage.total_tokens, abs=3)
        quiet = await say(engine, "s", "And?", learn=False)
        assert await level(redis_url, LEARNED) == pytest.approx(60 - turn.usage.total_tokens, abs=3)
        assert await level(redis_url, TOKENS) < 60 - turn.usage.total_tokens - quiet.usage.completion_tokens


async def test_reading_without_learning_goes_on_where_learning_has_no_credit_left(redis_url: str) -> None:
    async with opened(redis_url, learned_tokens_per_minute=1) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        await say(engine, "s", "My dog is called Rex.")
        with pytest.raises(RateLimited, match="learn"):
            await say(engine, "s", "My dog is called Rex.")
        assert not (await say(engine, "s", "And?", learn=False)).memory.learned


async def test_over_its_budget_a_session_is_answered_without_learning_on_every_replica(redis_url: str) -> None:
    limited: dict[str, Any] = {"learned_tokens_per_session_hour": 40, "learned_tokens_per_minute": 1000}
    async with opened(redis_url, **limited) as engine, opened(redis_url, **limited) as other:
        for name in ("s", "quiet"):
            await engine.create_session(TENANT, name, {}, False)
        turns = [await say(one, "s", "My dog is called Rex.") for one in (engine, other) * 3]
        learned = [turn.memory.learned for turn in turns]
        assert learned == sorted(learned, reverse=True)
        assert 0 < sum(learned) < len(learned)
        used = sum(turn.usage.total_tokens for turn in turns if turn.memory.learned)
        assert 40 <= used + 2 < 40 + 2 * turns[0].usage.total_tokens
        # The rest left no trace, but for the reply.
        session = await engine.session(TENANT, "s")
        assert (session.version, session.num_turns) == (sum(learned), sum(learned))
        assert all(turn.reply and turn.memory.version == session.version for turn in turns[sum(learned) :])
        # What the tenant has is not charged for what was not learned; and another session goes on.
        assert await level(redis_url, LEARNED) == pytest.approx(1000 - used, abs=80)
        assert (await say(other, "quiet", "My dog is called Rex.")).memory.learned
        # A document that would only be learned from is refused, so that nobody takes it for learned.
        with pytest.raises(RateLimited, match="40 tokens an hour") as refused:
            await say(engine, "s", "My dog is called Rex.", max_tokens=0)
        assert 0 < (refused.value.retry_after_s or 0) <= 3600
        await engine.delete_session(TENANT, "s")
        client = Redis.from_url(redis_url)
        assert [key async for key in client.scan_iter("*:s}*")] == []
        await client.aclose()


async def test_a_turn_that_the_tenants_limit_refuses_costs_the_session_nothing(redis_url: str) -> None:
    async with opened(redis_url, learned_tokens_per_session_hour=40, turns_per_minute=1) as engine:
        await engine.create_session(TENANT, "s", {}, False)
        used = (await say(engine, "s", "My dog is called Rex.")).usage.total_tokens
        with pytest.raises(RateLimited, match="1 turns a minute"):
            await say(engine, "s", "My dog is called Rex.")
        client = Redis.from_url(redis_url)
        left = float(await client.hget(SessionKeys(TENANT, "s").learned, "level") or 0)
        await client.aclose()
        assert left == pytest.approx(40 - used, abs=3)


async def test_a_long_history_that_was_read_already_is_not_too_large(redis_url: str) -> None:
    async with opened(redis_url, max_message_tokens=60) as engine:
        messages: list[Said] = []
        for number in range(6):
            messages.append(Said("user", f"Number {number} of a long conversation."))
            asked = TurnRequest("", temperature=0.0, max_tokens=4)
            events = [event async for event in engine.chat(TENANT, "s", messages, asked)]
            messages.append(Said("assistant", events[-1].turn.reply))  # type: ignore[union-attr]
        assert (await engine.session(TENANT, "s")).num_turns == 6
        with pytest.raises(TooLarge):
            async for _ in engine.chat(TENANT, None, [*messages, Said("user", "And?")], asked):
                pass

"""How events reach a reader: a turn is closed however it is left, and a reader that falls behind is noticed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engine import TurnRequest
from server.delivery import Outbox, SlowReader, turn_events
from tests.server.running import until

if TYPE_CHECKING:
    from engine import Engine

LONG = TurnRequest("hello", max_tokens=1000, temperature=0)


async def test_leaving_the_block_cancels_the_turn(engine: Engine) -> None:
    await engine.create_session("default", "s", {}, False)
    async with turn_events(engine.turn("default", "s", LONG)) as events:
        assert await anext(events)
    async with turn_events(engine.turn("default", "s", TurnRequest("hello", max_tokens=1, temperature=0))) as events:
        assert [type(event).__name__ async for event in events][-1] == "TurnCompleted", "the lease is free again"
    assert (await engine.session("default", "s")).version == 1


@pytest.mark.parametrize("steps", range(1, 14))
async def test_a_cancelled_turn_ends_wherever_the_cancellation_hits_it(engine: Engine, steps: int) -> None:
    """A library may swallow the one cancellation that it gets; the turn must end all the same."""
    await engine.create_session("default", "s", {}, False)

    async def listen() -> None:
        async with turn_events(engine.turn("default", "s", LONG)) as events:
            async for _ in events:
                pass

    task = asyncio.create_task(listen())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait({task})
    assert task.cancelled()
    assert (await engine.session("default", "s")).version == 0


async def test_outbox_delivers_in_order_and_flushes() -> None:
    received: list[str] = []

    async def send(text: str) -> None:
        await asyncio.sleep(0)
        received.append(text)

    async with Outbox(send, max_events=10, send_timeout_s=1) as outbox:
        for text in "abc":
            outbox.put(text)
        await outbox.flush()
        assert received == ["a", "b", "c"]


async def test_full_backlog_is_a_slow_reader() -> None:
    async def never(text: str) -> None:
        await asyncio.Event().wait()

    async with Outbox(never, max_events=2, send_timeout_s=60) as outbox:
        outbox.put("being written")
        await asyncio.sleep(0.01)
        outbox.put("1")
        outbox.put("2")
        with pytest.raises(SlowReader):
            outbox.put("3")


async def test_write_that_takes_too_long_is_a_slow_reader() -> None:
    async def never(text: str) -> None:
        await asyncio.Event().wait()

    async with Outbox(never, max_events=10, send_timeout_s=0.01) as outbox:
        outbox.put("1")
        with pytest.raises(SlowReader):
            await outbox.flush()
        with pytest.raises(SlowReader):
            outbox.put("2")


async def test_reader_that_left_is_not_a_slow_one() -> None:
    async def gone(text: str) -> None:
        raise ConnectionResetError

    async with Outbox(gone, max_events=10, send_timeout_s=1) as outbox:
        outbox.put("1")
        await outbox.flush()
        assert not outbox.writer.done()


async def test_silence_is_filled_where_a_keep_alive_is_given() -> None:
    received: list[str] = []

    async def send(text: str) -> None:
        received.append(text)

    async with Outbox(send, max_events=1, send_timeout_s=1, keep_alive="ping", keep_alive_s=0.01):
        await until(lambda: received[:2] == ["ping", "ping"])

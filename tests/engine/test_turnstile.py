"""Turns of one session pass one at a time, as they came; the deadline holds while waiting; nothing stays behind."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DeadlineExceeded
from engine.turnstile import Turnstile

SOON_S = 30.0


class _Door:
    """Passes a turnstile and notes who is inside, and in which order they came in."""

    def __init__(self) -> None:
        self.turnstile = Turnstile()
        self.entered: list[tuple[str, int]] = []
        self.inside: dict[str, int] = {}
        self.most_inside = 0

    async def go(self, key: str, number: int, *, timeout_s: float = SOON_S, naps: int = 1) -> None:
        async with self.turnstile.enter(key, time.monotonic() + timeout_s):
            self.entered.append((key, number))
            self.inside[key] = self.inside.get(key, 0) + 1
            self.most_inside = max(self.most_inside, sum(self.inside.values()))
            assert self.inside[key] == 1
            for _ in range(naps):
                await asyncio.sleep(0)
            self.inside[key] -= 1

    @property
    def num_keys(self) -> int:
        return len(self.turnstile._locks)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.booleans()), max_size=20))
@settings(max_examples=40, deadline=None)
def test_each_key_is_passed_in_order_whoever_gives_up(arrivals: list[tuple[str, int, bool]]) -> None:
    async def run() -> None:
        door = _Door()
        tasks = [asyncio.create_task(door.go(key, n, naps=naps)) for n, (key, naps, _) in enumerate(arrivals)]
        await asyncio.sleep(0)
        inside_already = set(door.entered)
        for number, (key, _, gives_up) in enumerate(arrivals):
            if gives_up and (key, number) not in inside_already:
                tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        expected = {(k, n) for n, (k, _, gives_up) in enumerate(arrivals) if not gives_up} | inside_already
        assert set(door.entered) == expected
        for key in "abc":
            numbers = [n for k, n in door.entered if k == key]
            assert numbers == sorted(numbers)
        assert door.num_keys == 0

    asyncio.run(run())


async def test_different_keys_do_not_wait_for_each_other() -> None:
    door = _Door()
    await asyncio.gather(*(door.go(key, 0, naps=3) for key in "abc"))
    assert door.most_inside == 3


async def test_who_waits_past_the_deadline_is_told_and_the_next_one_passes() -> None:
    door = _Door()
    leave = asyncio.Event()

    async def stay() -> None:
        async with door.turnstile.enter("a", time.monotonic() + SOON_S):
            await leave.wait()

    staying = asyncio.create_task(stay())
    await asyncio.sleep(0)
    patient = asyncio.create_task(door.go("a", 2))
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="timeout_s"):
        await door.go("a", 1, timeout_s=0.05)
    assert 0.04 <= time.monotonic() - begun < 5.0
    assert not patient.done()
    leave.set()
    await asyncio.gather(staying, patient)
    assert door.entered == [("a", 2)]
    assert door.num_keys == 0


async def test_a_deadline_that_has_passed_is_told_at_once() -> None:
    door = _Door()
    async with door.turnstile.enter("a", time.monotonic() + SOON_S):
        with pytest.raises(DeadlineExceeded):
            await door.go("a", 1, timeout_s=-5.0)
    assert door.num_keys == 0


async def test_the_deadline_is_for_waiting_not_for_staying() -> None:
    turnstile, stayed = Turnstile(), False
    async with turnstile.enter("a", time.monotonic() + 0.02):
        await asyncio.sleep(0.05)
        stayed = True
    assert stayed


async def test_a_waiter_that_is_cancelled_leaves_no_hole() -> None:
    door = _Door()
    async with door.turnstile.enter("a", time.monotonic() + SOON_S):
        waiters = [asyncio.create_task(door.go("a", number)) for number in range(3)]
        await asyncio.sleep(0)
        waiters[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[1]
        assert door.entered == []
    await asyncio.gather(waiters[0], waiters[2])
    assert door.entered == [("a", 0), ("a", 2)]
    assert door.num_keys == 0


async def test_an_error_inside_frees_the_key() -> None:
    door = _Door()
    with pytest.raises(ZeroDivisionError):
        async with door.turnstile.enter("a", time.monotonic() + SOON_S):
            raise ZeroDivisionError
    assert door.num_keys == 0
    await door.go("a", 1)
    assert door.entered == [("a", 1)]

"""`make load`: hundreds of websockets on one server, and what the server adds to the engine's own time.

What is added to a turn is its time as the client sees it, less the time that the engine gives for it (`total_ms`, the
commit with it). Figures are of this machine, as busy as it is: read them beside each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hope_client import AsyncConversation, AsyncHopeClient

from engine import Engine, EngineSettings, StoreSettings, Turn, TurnCompleted, TurnRequest
from server.metrics import Metrics
from server.serve import SWITCH_INTERVAL_S
from tests.faults.fleet import Process
from tests.soak.one_server import one_server, resident_bytes, url_of
from tests.tiny import write_tiny_checkpoint

MESSAGE = "My dog is called Rufus, and it rains."
OPTIONS: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0}
WARM_UP = 5
# So many sockets are opened at a time.
OPENING = 20


def main() -> int:
    parser = argparse.ArgumentParser("make load", description=__doc__)
    parser.add_argument("--idle", type=int, default=500, help="websockets that only listen (default 500)")
    parser.add_argument("--active", type=int, default=50, help="websockets that talk (default 50)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each that talks (default 5)")
    parser.add_argument("--alone", type=int, default=100, help="turns one at a time, for what is added (default 100)")
    parser.add_argument("--checkpoint", type=Path, help="what is served; default: a tiny untrained model")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hope-load-"))
    checkpoint = (given.checkpoint or write_tiny_checkpoint(folder / "checkpoint")).resolve()
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the server does, for the engine alone runs here
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began")
    with one_server(folder, checkpoint, {"log-level": "warning"}) as server:
        asyncio.run(_measure(server, checkpoint, folder, given))
    return 0


async def _measure(server: Process, checkpoint: Path, folder: Path, given: argparse.Namespace) -> None:
    settings, stores = EngineSettings(checkpoint=checkpoint, torch_threads=1), StoreSettings(data_dir=folder / "alone")
    engine = await Engine.open(settings, stores, Metrics())
    try:
        await _one_at_a_time(server, engine, given.alone)
        await _many_of_the_engine(engine, given.active, given.turns)
    finally:
        await engine.close()
    await _many(server, given.idle, given.active, given.turns)


async def _one_at_a_time(server: Process, engine: Engine, num_turns: int) -> None:
    """Turns of the engine alone and of the server in three ways, by turns: all meet the same noise."""
    seen: dict[str, list[tuple[float, float]]] = {"engine alone": [], "JSON": [], "SSE": [], "websocket": []}
    async with AsyncHopeClient(url_of(server)) as client, contextlib.AsyncExitStack() as sockets:
        session = (await engine.create_session("default", None, {}, False)).id
        ids = {way: (await client.create_session())["id"] for way in seen}
        conversation = await sockets.enter_async_context(client.stream(ids["websocket"]))
        for number in range(num_turns + WARM_UP):
            for way, timed in seen.items():
                begun = time.perf_counter()
                if way == "engine alone":
                    own_ms = (await _turn_of(engine, session)).timing.total_ms
                elif way == "JSON":
                    own_ms = (await client.turn(ids[way], MESSAGE, **OPTIONS))["timing"]["total_ms"]
                elif way == "SSE":
                    own_ms = _own_ms([event async for event in client.turn_events(ids[way], MESSAGE, **OPTIONS)])
                else:
                    own_ms = _own_ms([event async for event in conversation.turn(MESSAGE, **OPTIONS)])
                if number >= WARM_UP:
                    timed.append(((time.perf_counter() - begun) * 1000, own_ms))
    print(f"\n{num_turns} turns one at a time, ms{'':9}{'p50':>8}{'p95':>8}{'added p50':>12}{'added p95':>12}")
    for way, timed in seen.items():
        walls, added = [wall for wall, _ in timed], [wall - own for wall, own in timed]
        print(f"{way:32}{_p(walls, 50):8.1f}{_p(walls, 95):8.1f}{_p(added, 50):12.2f}{_p(added, 95):12.2f}")


async def _many_of_the_engine(engine: Engine, num_active: int, num_turns: int) -> None:
    """As many turns at once as `_many` lets websockets ask for, without any server."""

    async def talk() -> list[tuple[float, float]]:
        session, timed = (await engine.create_session("default", None, {}, False)).id, []
        for _ in range(num_turns):
            begun = time.perf_counter()
            own_ms = (await _turn_of(engine, session)).timing.total_ms
            timed.append(((time.perf_counter() - begun) * 1000, own_ms))
        return timed

    begun = time.perf_counter()
    talked = await asyncio.gather(*(talk() for _ in range(num_active)))
    _print_many(f"The engine alone, {num_active} at once", talked, time.perf_counter() - begun)


async def _many(server: Process, num_idle: int, num_active: int, num_turns: int) -> None:
    before = resident_bytes(server)
    async with AsyncHopeClient(url_of(server), timeout_s=120) as client, contextlib.AsyncExitStack() as sockets:
        begun = time.perf_counter()
        opened: list[AsyncConversation] = []
        while len(opened) < num_idle + num_active:
            some = range(min(OPENING, num_idle + num_active - len(opened)))
            opened += await asyncio.gather(*(_open(client, sockets) for _ in some))
        took_s, grown = time.perf_counter() - begun, resident_bytes(server) - before
        print(f"\n{len(opened)} websockets opened in {took_s:.1f} s, {grown / len(opened) / 1024:.0f} KiB each")
        begun = time.perf_counter()
        talked = await asyncio.gather(*(_talk(one, num_turns) for one in opened[num_idle:]))
        took_s = time.perf_counter() - begun
        _print_many(f"{num_active} websockets talk, {num_idle} listen", talked, took_s)
        woken = await asyncio.gather(*(_talk(one, 1) for one in opened[:num_idle:50]))
        print(f"{len(woken)} of those that listened then talked as well")


def _print_many(what: str, talked: Sequence[Sequence[tuple[float, float]]], took_s: float) -> None:
    turns = [turn for talk in talked for turn in talk]
    print(f"\n{what}: {len(turns) / took_s:.1f} turns/s")
    for name, values in (("a turn", [wall for wall, _ in turns]), ("added to it", [wall - own for wall, own in turns])):
        print(f"{name:16} ms: p50 {_p(values, 50):8.1f}  p95 {_p(values, 95):8.1f}  p99 {_p(values, 99):8.1f}")


async def _open(client: AsyncHopeClient, sockets: contextlib.AsyncExitStack) -> AsyncConversation:
    return await sockets.enter_async_context(client.stream(await client.create_session()))


async def _talk(conversation: AsyncConversation, num_turns: int) -> list[tuple[float, float]]:
    """Milliseconds of each turn: as seen here, and by the engine's own account."""
    timed = []
    for _ in range(num_turns):
        begun = time.perf_counter()
        own_ms = _own_ms([event async for event in conversation.turn(MESSAGE, timeout_s=300, **OPTIONS)])
        timed.append(((time.perf_counter() - begun) * 1000, own_ms))
    return timed


async def _turn_of(engine: Engine, session: str) -> Turn:
    async with contextlib.aclosing(engine.turn("default", session, TurnRequest(MESSAGE, **OPTIONS))) as events:
        *_, last = [event async for event in events]
    assert isinstance(last, TurnCompleted)
    return last.turn


def _own_ms(events: Sequence[Any]) -> float:
    return float(events[-1]["turn"]["timing"]["total_ms"])


def _p(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    sys.exit(main())

"""`make soak`: clients of every kind on one server with its store and worker, which is stopped and killed now and then.

At the end the transcripts are held against what the clients were told. Exits 1 on any violation.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hope_client import AsyncHopeClient, NotFound

from tests.chaos.traffic import Record, print_tables
from tests.faults.fleet import Process
from tests.soak.one_server import kill_family, one_server, resident_bytes, stop, url_of
from tests.soak.traffic import KINDS, Life, Talker
from tests.tiny import write_tiny_checkpoint

# After the last fault everything is well again, and what is still being insisted on gets this long.
PEACE_S = 90.0
LOOK_EVERY_S = 2.0


class Watch:
    """How large the server was, in each of its lives."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self.lives: list[list[int]] = []

    def look(self) -> None:
        """Notes its size where it runs."""
        if self._server.alive:
            self.lives[-1].append(resident_bytes(self._server))


def main() -> int:
    parser = argparse.ArgumentParser("make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--clients", type=int, default=2, help="of each kind (default 2)")
    parser.add_argument("--fault-every-s", type=float, default=60.0, help="mean seconds between faults (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of traffic and faults (default 0)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hope-soak-"))
    # A small cache, so that memories come from the store too.
    flags = {"resident-bytes": 2**21, "log-level": "warning"}
    with one_server(folder, write_tiny_checkpoint(folder / "checkpoint"), flags) as server:
        print(f"{url_of(server)} is soaked; its log is in {folder}", flush=True)
        violations = asyncio.run(_soak(server, given))
        status = stop(server)
    if status != 0:
        violations.append(f"the server ended with status {status}")
    for violation in violations:
        print(f"VIOLATION {violation}")
    print("no violation" if not violations else f"{len(violations)} violations")
    return 1 if violations else 0


async def _soak(server: Process, given: argparse.Namespace) -> list[str]:
    ended, given_up = asyncio.Event(), asyncio.Event()
    talkers = [
        Talker(url_of(server), kind, f"{given.seed}-{kind}-{number}", ended, given_up)
        for kind in KINDS
        for number in range(given.clients)
    ]
    watch, faults = Watch(server), Counter[str]()
    async with asyncio.TaskGroup() as group:
        talking = [group.create_task(talker.run()) for talker in talkers]
        violations = await _do_harm(server, given, watch, faults)
        ended.set()
        await asyncio.wait(talking, timeout=PEACE_S)
        given_up.set()
    watch.look()
    lives = [life for talker in talkers for life in talker.lives]
    counts, broken = await _audit(url_of(server), lives)
    records = [talker.record for talker in talkers]
    _print_tables(records, faults, counts, watch)
    return violations + [violation for record in records for violation in record.violations] + broken


async def _do_harm(server: Process, given: argparse.Namespace, watch: Watch, faults: Counter[str]) -> list[str]:
    """Stops or kills the server at random and starts it again, until the time is over."""
    chance, violations = random.Random(given.seed), list[str]()
    until = time.monotonic() + given.minutes * 60
    watch.lives.append([])
    while time.monotonic() < until:
        calm_until = min(until, time.monotonic() + given.fault_every_s * chance.uniform(0.5, 1.5))
        while time.monotonic() < calm_until:
            await asyncio.sleep(LOOK_EVERY_S)
            watch.look()
            if not server.alive:
                violations.append(f"the server ended by itself: {server.log[-500:]}")
                break
        what = chance.choice(["SIGTERM", "kill -9", "kill -9 of all"])
        faults[what] += 1
        if what == "SIGTERM":
            status = await asyncio.to_thread(stop, server)
            violations += [f"SIGTERM ended with status {status}"] if status else []
        else:
            await asyncio.to_thread(kill_family if what.endswith("all") else Process.kill, server)
        server.begin()
        await asyncio.to_thread(server.wait)
        watch.lives.append([])
    return violations


async def _audit(url: str, lives: list[Life]) -> tuple[Counter[str], list[str]]:
    """Holds the transcripts against what was asked and answered."""
    counts, violations = Counter[str](), list[str]()
    async with AsyncHopeClient(url) as client:
        for life in lives:
            counts["sessions"] += 1
            if life.deleted:
                counts["sessions deleted"] += 1
                try:
                    await client.session(life.session_id)
                    violations.append(f"{life.session_id} was deleted and is there")
                except NotFound:
                    continue
            found = [turn async for turn in client.transcript(life.session_id)]
            session = await client.session(life.session_id)
            violations += _compare(life, [dict(turn) for turn in found], session["version"], counts)
    return counts, violations


def _compare(life: Life, found: list[dict[str, object]], version: int, counts: Counter[str]) -> list[str]:
    violations = []
    times, ids = Counter(turn["message"] for turn in found), {turn["message"]: turn["id"] for turn in found}
    for deed in life.deeds:
        counts["turns asked"] += 1
        counts["turns answered"] += deed.turn_id is not None
        counts["turns cancelled"] += deed.cancelled
        if deed.turn_id is not None and ids.get(deed.message) != deed.turn_id:
            violations.append(f"{deed.message!r} was answered as {deed.turn_id} and is lost")
        if deed.cancelled and deed.message in ids:
            violations.append(f"{deed.message!r} was cancelled and is there")
        if times[deed.message] > 1:
            violations.append(f"{deed.message!r} is there {times[deed.message]} times")
    counts["turns in transcripts"] += len(found)
    strange = times.keys() - {deed.message for deed in life.deeds}
    violations += [f"{life.session_id}: {message!r} was never asked" for message in strange]
    if [turn["index"] for turn in found] != list(range(len(found))):
        violations.append(f"{life.session_id}: its turns are not numbered one after the other")
    versions = [turn["memory"]["version"] for turn in found]  # type: ignore[index]
    # Between two turns the worker may have made a version of its own.
    if versions != sorted(set(versions)) or version < max([len(found), *versions]):
        violations.append(f"{life.session_id}: versions {versions} and at last {version}")
    return violations


def _print_tables(records: list[Record], faults: Counter[str], counts: Counter[str], watch: Watch) -> None:
    print_tables(records, faults, counts)
    print("\nthe server's memory in each of its lives, MiB: first seen, largest, last seen")
    for sizes in filter(None, watch.lives):
        print("  ".join(f"{size / 2**20:8.1f}" for size in (sizes[0], max(sizes), sizes[-1])))


if __name__ == "__main__":
    sys.exit(main())

"""`make chaos`: mixed traffic on three replicas behind nginx, while the store and the replicas are killed and stopped
at random; at the end the transcripts are held against what clients were told. Exits 1 on any violation."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.traffic import Asked, Talker, print_tables
from tests.faults.fleet import NGINX, WITHOUT_NGINX, Fleet, Process
from tests.tiny import write_tiny_checkpoint

# After the last fault everything is well again, and what is still being insisted on gets this long.
PEACE_S = 90.0


def main() -> int:
    parser = argparse.ArgumentParser("make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--sessions", type=int, default=50, help="sessions (default 50)")
    parser.add_argument("--clients", type=int, default=10, help="clients that share them (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of traffic and faults (default 0)")
    given = parser.parse_args()
    if NGINX is None:
        print(WITHOUT_NGINX, file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="hope-chaos-"))
    with Fleet(folder, write_tiny_checkpoint(folder / "checkpoint")) as fleet:
        print(f"three replicas serve behind {fleet.url}; logs in {folder}", flush=True)
        talkers, faults = _storm(fleet, given)
        records = [talker.record for talker in talkers]
        violations = [violation for record in records for violation in record.violations]
        fleet.store.wait()
        counts, broken = _audit(fleet, [turn for record in records for turn in record.turns])
        print_tables(records, faults, counts)
    violations += broken
    for violation in violations:
        print(f"VIOLATION {violation}")
    print("no violation" if not violations else f"{len(violations)} violations")
    return 1 if violations else 0


def _storm(fleet: Fleet, given: argparse.Namespace) -> tuple[list[Talker], Counter[str]]:
    """Traffic and faults for so many minutes, then peace until every turn is answered."""
    ended, given_up = threading.Event(), threading.Event()
    names = [f"chaos-{number}" for number in range(given.sessions)]
    talkers = [
        Talker(fleet.url, names[number :: given.clients], f"{given.seed}-{number}", ended, given_up)
        for number in range(min(given.clients, given.sessions))
    ]
    faults: Counter[str] = Counter()
    with ThreadPoolExecutor(len(talkers)) as threads:
        running = [threads.submit(talker.run) for talker in talkers]
        try:
            _do_harm(fleet, random.Random(given.seed), time.monotonic() + given.minutes * 60, faults)
            ended.set()
            deadline = time.monotonic() + PEACE_S
            while any(not talk.done() for talk in running) and time.monotonic() < deadline:
                _supervise(fleet)
                time.sleep(0.1)
        finally:
            ended.set()
            given_up.set()
        for talk in running:
            talk.result()
    return talkers, faults


def _do_harm(fleet: Fleet, chance: random.Random, until: float, faults: Counter[str]) -> None:
    """One fault after the other, each mended before long; one replica at least is left alone."""
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, chance.uniform(2, 8)))
        _supervise(fleet)
        replica = chance.choice(fleet.replicas)
        others = [one for one in fleet.replicas if one is not replica and one.answers()]
        what = chance.choice(["kill the store", "stop the store", "kill a replica", "stop a replica"])
        if "replica" in what and not others:
            continue
        victim = replica if "replica" in what else fleet.store
        faults[what] += 1
        if "kill" in what:
            victim.kill()
            time.sleep(chance.uniform(0, 3))
            victim.begin()
        else:
            _stop_for(victim, chance.uniform(0.5, 9))  # up to beyond a lease


def _supervise(fleet: Fleet) -> None:
    """Starts what has ended, as a server does that finds no store when it begins."""
    for process in (fleet.store, *fleet.replicas):
        if not process.alive:
            process.begin()


def _stop_for(victim: Process, seconds: float) -> None:
    victim.send(signal.SIGSTOP)
    time.sleep(seconds)
    victim.send(signal.SIGCONT)


def _audit(fleet: Fleet, asked: list[Asked]) -> tuple[dict[str, int], list[str]]:
    """Holds the transcripts against what was asked and answered."""
    violations: list[str] = []
    counts = {"sessions": 0, "turns asked": len(asked), "answered": 0, "in a transcript": 0, "unanswered but there": 0}
    of_session: dict[str, list[Asked]] = {}
    for turn in asked:
        of_session.setdefault(turn.session_id, []).append(turn)
    for session_id, turns in of_session.items():
        found = fleet.transcript(session_id)
        session = fleet.http.get(f"/v1/sessions/{session_id}").json()
        times = Counter(turn["message"] for turn in found)
        ids = {turn["message"]: turn["id"] for turn in found}
        for turn in turns:
            if turn.turn_id is not None and ids.get(turn.message) != turn.turn_id:
                violations.append(f"{session_id}: {turn.message!r} was answered as {turn.turn_id} and is lost")
            if times[turn.message] > 1:
                violations.append(f"{session_id}: {turn.message!r} is there {times[turn.message]} times")
        for message in times.keys() - {turn.message for turn in turns}:
            violations.append(f"{session_id}: {message!r} was never asked")
        if not session["version"] == session["num_turns"] == len(found):
            violations.append(f"{session_id}: version {session['version']}, {len(found)} turns in the transcript")
        if [turn["index"] for turn in found] != list(range(len(found))):
            violations.append(f"{session_id}: its turns are not numbered one after the other")
        counts["sessions"] += 1
        counts["answered"] += sum(turn.turn_id is not None for turn in turns)
        counts["in a transcript"] += len(found)
        counts["unanswered but there"] += sum(turn.turn_id is None and turn.message in ids for turn in turns)
    return counts, violations


if __name__ == "__main__":
    sys.exit(main())

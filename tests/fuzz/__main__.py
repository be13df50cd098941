"""`make fuzz`: as many cases as wanted in rounds against one server, its memory watched. Exits 1 where anything fails.

Each round generates others, and prints the seed with which it can be had again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.fleet import is_ready
from tests.fuzz.target import (
    CASES_VARIABLE,
    KEYS,
    MAX_BODY_BYTES,
    MAX_NEW_TOKENS,
    SEED_VARIABLE,
    TURNS_PER_CONSOLIDATION,
    URL_VARIABLE,
)
from tests.soak.one_server import one_server, resident_bytes, url_of
from tests.tiny import write_tiny_checkpoint

FOLDER = Path(__file__).parent
RESIDENT_BYTES = 2**22
# Growth of the server's memory from the end of the second round to the last one that is no leak.
FLAT = 0.05


def main() -> int:
    parser = argparse.ArgumentParser("make fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="requests, scripts and steps (default 10000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds they come in (default 5)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hope-fuzz-"))
    flags = {
        "max-new-tokens": MAX_NEW_TOKENS,
        "max-body-bytes": MAX_BODY_BYTES,
        "turns-per-consolidation": TURNS_PER_CONSOLIDATION,
        "resident-bytes": RESIDENT_BYTES,
        "log-level": "warning",
    }
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    sizes: list[int] = []
    failed: list[int] = []
    with one_server(folder, checkpoint, flags, {"HOPE_API_KEYS": KEYS}) as server:
        print(f"{url_of(server)} is fuzzed; its log is in {folder}", flush=True)
        for number in range(given.rounds):
            begun = time.monotonic()
            if _round(url_of(server), given.cases // given.rounds, given.seed + number) != 0:
                failed.append(given.seed + number)
            assert server.alive, f"the server has ended: {server.log[-2000:]}"
            assert is_ready(server.port)
            sizes.append(resident_bytes(server))
            took_s = time.monotonic() - begun
            print(f"round {number + 1}: {took_s:.0f} s, server at {sizes[-1] / 2**20:.1f} MiB", flush=True)
    growth = sizes[-1] / sizes[min(1, len(sizes) - 1)] - 1
    print(f"about {given.cases} cases; memory grew by {growth:.1%} since the second round; failed seeds: {failed}")
    return 1 if failed or growth > FLAT else 0


def _round(url: str, cases: int, seed: int) -> int:
    asked = {URL_VARIABLE: url, CASES_VARIABLE: str(cases), SEED_VARIABLE: str(seed)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "0", str(FOLDER)]
    return subprocess.run(command, env={**os.environ, **asked}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

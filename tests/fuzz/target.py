"""What the fuzzed server is like, and how much it is fuzzed: a little, or as `make fuzz` says by the environment."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# One tenant for each kind of fuzzing, so that none meets another's sessions and generations.
KEYS = "routes-key:routes:operator,frames-key:frames:user,histories-key:histories:user"
MAX_NEW_TOKENS = 8
MAX_BODY_BYTES = 2**16
# Of the sessions here none becomes so long: every version is a turn's.
TURNS_PER_CONSOLIDATION = 10**6

URL_VARIABLE, CASES_VARIABLE, SEED_VARIABLE = "HOPE_FUZZ_URL", "HOPE_FUZZ_CASES", "HOPE_FUZZ_SEED"
URL = os.environ.get(URL_VARIABLE)
CASES = int(os.environ.get(CASES_VARIABLE, "0"))
SEED = int(os.environ.get(SEED_VARIABLE, "0"))


def headers_of(tenant: str) -> dict[str, str]:
    """The headers that name a tenant's key."""
    return {"Authorization": f"Bearer {tenant}-key"}


def examples(few: int, share: float) -> settings:
    """Settings for so many examples, or for a share of the cases that `make fuzz` asks for."""
    return settings(
        max_examples=max(few, round(CASES * share)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )

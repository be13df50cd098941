"""Every name this project writes into Redis, in one place, with the version of the layout behind it.

All keys of one session share the hash tag `{tenant:session}`, so one script may move them together on a Redis
Cluster too. Knows no client and no values.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

# Grows when the meaning of any key or value below changes; a change comes with a migration.
LAYOUT_VERSION = 1
_PREFIX = f"hope:{LAYOUT_VERSION}:"

# The worker's line: sessions by the time they are due, and what is being worked on.
WORK_DUE = f"{_PREFIX}{{work}}:due"  # zset: session -> ms at which it is due
WORK_CLAIMED = f"{_PREFIX}{{work}}:claimed"  # zset: session -> ms at which its claim goes stale
WORK_TOKENS = f"{_PREFIX}{{work}}:tokens"  # hash: session -> token of the claim
WORK_ATTEMPTS = f"{_PREFIX}{{work}}:attempts"  # hash: session -> claims since it was last finished
WORK_DEAD = f"{_PREFIX}{{work}}:dead"  # zset: session -> ms at which it was given up
WORKER_ALIVE = f"{_PREFIX}{{work}}:alive"  # string with a time to live: the worker that was last seen


@dataclass(frozen=True)
class SessionKeys:
    """The keys of one session."""

    tenant: str
    session_id: str

    @property
    def head(self) -> str:
        """Hash: the session's facts, its version and its fence."""
        return self._key("head")

    @property
    def lease(self) -> str:
        """String with a time to live: who may commit."""
        return self._key("lease")

    @property
    def versions(self) -> str:
        """Hash: version -> JSON of a retained version."""
        return self._key("versions")

    @property
    def turns(self) -> str:
        """Hash: turn id -> JSON of the turn."""
        return self._key("turns")

    @property
    def turn_order(self) -> str:
        """Zset: turn id -> its index."""
        return self._key("turn_order")

    @property
    def idempotency(self) -> str:
        """Hash: digest of an idempotency key -> JSON of what it was used for."""
        return self._key("idempotency")

    @property
    def idempotency_expiry(self) -> str:
        """Zset: digest of an idempotency key -> ms after which it is forgotten."""
        return self._key("idempotency_expiry")

    @property
    def history(self) -> str:
        """Hash: digest of everything said up to a turn's reply -> index of that turn."""
        return self._key("history")

    @property
    def staged(self) -> str:
        """Hash with a time to live: mark -> number of chunks of a memory written but not committed."""
        return self._key("staged")

    @property
    def learned(self) -> str:
        """Hash with a time to live: the credit that the session has left to learn, and when that was so."""
        return self._key("learned")

    @property
    def fixed(self) -> list[str]:
        """Every key but the chunks of memory and `learned`, in the order the scripts expect them."""
        return [
            self.head,
            self.lease,
            self.versions,
            self.turns,
            self.turn_order,
            self.idempotency,
            self.idempotency_expiry,
            self.staged,
            self.history,
        ]

    def chunks(self, mark: str, num_chunks: int) -> list[str]:
        """Strings: the pieces of one memory, never changed once written."""
        return [self._key(f"memory:{mark}:{index}") for index in range(num_chunks)]

    def arriving_turns(self, mark: str) -> str:
        """Hash with a time to live: as `turns`, of a session that is not made yet."""
        return self._key(f"arriving:{mark}:turns")

    def arriving_history(self, mark: str) -> str:
        """Hash with a time to live: as `history`, of a session that is not made yet."""
        return self._key(f"arriving:{mark}:history")

    def arriving_order(self, mark: str) -> str:
        """Zset with a time to live: as `turn_order`, of a session that is not made yet."""
        return self._key(f"arriving:{mark}:turn_order")

    def _key(self, part: str) -> str:
        return f"{_PREFIX}{{{session_name(self.tenant, self.session_id)}}}:{part}"


def session_index(tenant: str) -> str:
    """Zset: the ids of a tenant's sessions, all with score 0, so that they lie in alphabetical order."""
    return f"{_PREFIX}{{{quote(tenant, safe='')}}}:sessions"


# What finds the indices of all tenants (a pattern of SCAN).
SESSION_INDICES = f"{_PREFIX}{{*}}:sessions"


def tenant_of_index(index: str) -> str:
    """Whose a `session_index` is."""
    return unquote(index.removeprefix(f"{_PREFIX}{{").removesuffix("}:sessions"))


def limit_bucket(tenant: str, kind: str) -> str:
    """Hash with a time to live: the credit of one kind that a tenant has left, and when that was so."""
    return f"{_PREFIX}{{{quote(tenant, safe='')}}}:limit:{kind}"


@dataclass(frozen=True)
class TenantKeys:
    """The keys of what a tenant's sessions share; one hash tag for all of them."""

    tenant: str

    @property
    def state(self) -> str:
        """Hash: `active` generation, `latest` one, and `switches`, which grows with every change of the active one."""
        return self._key("state")

    @property
    def generations(self) -> str:
        """Hash: number -> JSON of a generation."""
        return self._key("generations")

    @property
    def consolidations(self) -> str:
        """Hash: id -> JSON of a consolidation."""
        return self._key("consolidations")

    @property
    def consolidation_order(self) -> str:
        """Zset: id of a consolidation -> ms at which it was asked for."""
        return self._key("consolidation_order")

    @property
    def running(self) -> str:
        """Hash: `id` of the consolidation that runs or waits for a worker, and what was asked of it."""
        return self._key("running")

    @property
    def rehearsal(self) -> str:
        """Hash: `GENERATION:SESSION` -> JSON of what that generation learned of it, to be gone through again."""
        return self._key("rehearsal")

    @property
    def forgotten(self) -> str:
        """Zset: hash of a deleted session -> ms of its deletion; for a day, longer than any consolidation runs."""
        return self._key("forgotten")

    @property
    def quarantine(self) -> str:
        """Hash: hash of a session that spoiled a candidate -> JSON of how often, when and why."""
        return self._key("quarantine")

    @property
    def passed(self) -> str:
        """Hash: `generation` -> its number, and session hash -> turns that told it nothing, from the first on."""
        return self._key("passed")

    def chunks(self, mark: str, num_chunks: int) -> list[str]:
        """Strings: the pieces of one generation, never changed once written."""
        return [self._key(f"generation:{mark}:{index}") for index in range(num_chunks)]

    def _key(self, part: str) -> str:
        return f"{_PREFIX}{{{quote(self.tenant, safe='')}}}:{part}"


def session_name(tenant: str, session_id: str) -> str:
    """One word for a session, unlike that of any other."""
    return f"{quote(tenant, safe='')}:{quote(session_id, safe='')}"


def parse_session_name(name: str) -> tuple[str, str]:
    """Tenant and session id of a `session_name`."""
    tenant, _, session_id = name.partition(":")
    return unquote(tenant), unquote(session_id)

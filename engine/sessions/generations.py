"""The store's part of generations: what a tenant's sessions share, which of them is active, and how each came about.

Each change is one script. A generation is bytes here, and never changed once written; knows no model.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from engine.core import Consolidation, GateCheck, GenerationView, Session
from engine.errors import Conflict, CorruptMemory, NotFound, StoreUnavailable
from engine.sessions.connection import RETRY_AFTER_S, Connection, Value
from engine.sessions.keys import WORK_DUE, TenantKeys, session_name
from engine.sessions.laid_down import LaidDown
from engine.sessions.quarantine import Quarantine
from engine.sessions.records import now_iso
from engine.sessions.sealing import Seal
from engine.sessions.shelf import Shelf

MOST_CONSOLIDATIONS = 100
_REMEMBER_DELETED_MS = 86_400_000


@dataclass(frozen=True)
class Generation:
    """A generation and where it comes from.

    Attributes:
        parent: the generation it was made from.
        mark, num_chunks, digest: as of a session's version.
        taken: turns of each session, by its hash, that this generation learned from.
        learned: turns of each session, by its hash, that it or an ancestor took in, from the first on.
        notes: figures of the training: steps, losses, norm.
        attempts: what was tried before it, in words.
        set_aside: hashes of the sessions that were found to spoil it.
        place: the file its bytes are in (`shelf.py`); empty where the store has them, in chunks.
    """

    number: int
    parent: int
    consolidation_id: str
    created_at: str
    size_bytes: int
    mark: str
    num_chunks: int
    digest: str
    taken: dict[str, int]
    learned: dict[str, int]
    notes: dict[str, float] = field(default_factory=dict)
    attempts: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    place: str = ""


@dataclass(frozen=True)
class Standing:
    """Which generation is active. `switches` counts the changes so far; `latest` is the highest number given."""

    active: int
    latest: int
    switches: int


@dataclass(frozen=True)
class Asked:
    """A consolidation that runs, and what it was asked: to go back to before a session, by its id."""

    consolidation: Consolidation
    without: str | None = None


@dataclass(frozen=True)
class Publication:
    """A candidate that passed its gate, on the way to become a generation.

    Attributes:
        consolidation: as it ends.
        standing: what it was made upon; where that has changed since, it is refused.
        generation: without mark, chunks and digest, which the store gives.
        weights: its bytes.
        rehearsal: by session hash, what is to be gone through again later (JSON).
        dropped: fields of the rehearsal that make room.
        unwanted: generations that make room.
    """

    consolidation: Consolidation
    standing: Standing
    generation: Generation
    weights: bytes
    rehearsal: Mapping[str, str]
    dropped: Sequence[str] = ()
    unwanted: Sequence[Generation] = ()


class GenerationStore:
    """Generations of tenants. Any method may raise StoreUnavailable.

    Args:
        connection: to the store.
        seal: put on generations, and taken off.
        shelf: for the bytes of new generations; None for the store itself.
    """

    def __init__(self, connection: Connection, seal: Seal, shelf: Shelf | None = None) -> None:
        self._connection, self._seal, self._bytes = connection, seal, LaidDown(connection, shelf)
        self.quarantine = Quarantine(connection)

    async def standing(self, tenant: str) -> Standing:
        """Which generation is active."""
        fields = ["active", "latest", "switches"]
        (found,) = await self._connection.batch([["HMGET", TenantKeys(tenant).state, *fields]])
        return Standing(*(int(value or 0) for value in found))

    async def views(self, tenant: str) -> list[GenerationView]:
        """Every kept generation, newest first, and 0: the checkpoint alone."""
        active = (await self.standing(tenant)).active
        found = sorted((await self.all(tenant)).values(), key=lambda one: -one.number)
        views = [
            GenerationView(one.number, one.created_at, one.number == active, one.consolidation_id) for one in found
        ]
        return [*views, GenerationView(0, None, active == 0, None)]

    async def all(self, tenant: str) -> dict[int, Generation]:
        """Every kept generation by its number."""
        (found,) = await self._connection.batch([["HGETALL", TenantKeys(tenant).generations]])
        read = [Generation(**json.loads(text)) for text in found.values()]
        return {one.number: one for one in read}

    async def load(self, tenant: str, number: int) -> tuple[Generation, bytes]:
        """A generation and its bytes.

        Raises:
            NotFound: it is not kept.
            CorruptMemory: its bytes are not those that were written.
        """
        keys = TenantKeys(tenant)
        (text,) = await self._connection.batch([["HGET", keys.generations, str(number)]])
        if text is None:
            raise _unknown(number)
        generation = Generation(**json.loads(text))
        weights = await self._bytes.read(tenant, generation)
        if weights is None:
            raise CorruptMemory(f"generation {number} is damaged in the store: activate another one")
        return generation, self._seal.open(weights, tenant, "", number)

    async def activate(self, tenant: str, number: int) -> None:
        """Makes a generation the active one, at once for all; raises NotFound where it is not kept."""
        keys = TenantKeys(tenant)
        if await self._connection.run("activate_generation", [keys.state, keys.generations], [str(number)]) != b"OK":
            raise _unknown(number)

    async def open(self, tenant: str, without: str | None = None) -> Asked:
        """The consolidation that runs or waits for a worker; a new one where there is none.

        Args:
            without: id of a session that it is to leave out, going back to before it was learned from.
        """
        keys = TenantKeys(tenant)
        begun = Consolidation(
            id=f"consolidation-{secrets.token_hex(12)}",
            status="running",
            from_generation=(await self.standing(tenant)).active,
            started_at=now_iso(),
        )
        args: list[Value] = [begun.id, _write(begun), json.dumps({"without": without}), MOST_CONSOLIDATIONS]
        names = [keys.running, keys.consolidations, keys.consolidation_order]
        running = (await self._connection.run("open_consolidation", names, args)).decode()
        (asked,) = await self._connection.batch([["HGET", keys.running, "asked"]])
        consolidation = begun if running == begun.id else await self.consolidation(tenant, running)
        return Asked(consolidation, json.loads(asked)["without"] if asked else None)

    async def consolidation(self, tenant: str, consolidation_id: str) -> Consolidation:
        """One consolidation, or NotFound."""
        (text,) = await self._connection.batch([["HGET", TenantKeys(tenant).consolidations, consolidation_id]])
        if text is None:
            raise NotFound(f"there is no consolidation '{consolidation_id}'", param="consolidation_id")
        return _read(text)

    async def consolidations(self, tenant: str) -> list[Consolidation]:
        """The last hundred, newest first."""
        keys = TenantKeys(tenant)
        order, texts = await self._connection.batch(
            [["ZREVRANGE", keys.consolidation_order, 0, -1], ["HGETALL", keys.consolidations]]
        )
        return [_read(texts[name]) for name in order if name in texts]

    async def close(self, tenant: str, consolidation: Consolidation) -> None:
        """Ends one that publishes nothing; one that has ended already stays as it is."""
        keys = TenantKeys(tenant)
        args: list[Value] = [consolidation.id, _write(consolidation)]
        await self._connection.run("close_consolidation", [keys.running, keys.consolidations], args)

    async def publish(self, tenant: str, publication: Publication) -> None:
        """Writes a generation, makes it the active one and ends its consolidation, in one step.

        Raises:
            Conflict: the active generation changed, the consolidation ended, or a session was deleted meanwhile;
                nothing was written.
        """
        keys = TenantKeys(tenant)
        made = publication.generation
        stored = self._seal.close(publication.weights, tenant, "", made.number)
        about = asdict(made) | {"consolidation": asdict(publication.consolidation)}
        # Unseen until the script, and gone by themselves without it.
        laid_down = await self._bytes.write(tenant, made.number, stored, about)
        record = asdict(made) | laid_down
        chunks = keys.chunks(laid_down["mark"], laid_down["num_chunks"])
        fixed = [keys.state, keys.generations, keys.running, keys.consolidations, keys.rehearsal, keys.forgotten]
        unwanted = [chunk for old in publication.unwanted for chunk in keys.chunks(old.mark, old.num_chunks)]
        rehearsal = [part for name, text in publication.rehearsal.items() for part in (f"{made.number}:{name}", text)]
        ended = publication.consolidation
        args: list[Value] = [
            *(ended.id, _write(ended), str(publication.standing.switches), str(made.number), json.dumps(record)),
            *(len(chunks), len(made.taken), len(publication.rehearsal), len(publication.dropped)),
            *made.taken,
            *rehearsal,
            *publication.dropped,
            *(str(old.number) for old in publication.unwanted),
        ]
        outcome = await self._connection.run("publish_generation", [*fixed, *chunks, *unwanted], args)
        if outcome == b"MISSING":
            raise StoreUnavailable("the store dropped a generation while it was written", retry_after_s=RETRY_AFTER_S)
        if outcome != b"OK":
            raise Conflict("what the generation was made of has changed meanwhile")
        await self._bytes.tidy(tenant, publication.unwanted, (await self.all(tenant)).values())

    async def hand_over(self, tenant: str) -> None:
        """Puts the tenant in the worker's line, now."""
        await self._connection.run("enqueue", [WORK_DUE], [session_name(tenant, ""), 0])

    async def schedule(self, tenant: str, delay_s: float) -> None:
        """Puts the tenant in the worker's line in `delay_s`, unless it is there already."""
        await self._connection.run("enqueue_first", [WORK_DUE], [session_name(tenant, ""), round(delay_s * 1000)])

    async def unschedule(self, tenant: str) -> None:
        """Takes the tenant out of the line, unless somebody asked for a consolidation."""
        if not (await self._connection.batch([["EXISTS", TenantKeys(tenant).running]]))[0]:
            await self._connection.batch([["ZREM", WORK_DUE, session_name(tenant, "")]])

    async def rehearsal(self, tenant: str) -> dict[str, str]:
        """What is to be gone through again, by `GENERATION:SESSION`."""
        (found,) = await self._connection.batch([["HGETALL", TenantKeys(tenant).rehearsal]])
        return {name.decode(): text.decode() for name, text in found.items()}

    async def forget(self, tenant: str, session: Session) -> list[int]:
        """Keeps a session out of every later generation; the kept ones that learned from it."""
        keys, name = TenantKeys(tenant), session_hash(tenant, session)
        names = [keys.rehearsal, keys.forgotten, keys.running, keys.quarantine, keys.passed]
        await self._connection.run("forget_learned", names, [name, _REMEMBER_DELETED_MS])
        return sorted(number for number, one in (await self.all(tenant)).items() if name in one.learned)


def session_hash(tenant: str, session: Session) -> str:
    """A session in a generation's provenance: it tells nobody who does not know the session already.

    One made anew under an id has another hash; the first half, `id_hash`, is the same.
    """
    return id_hash(tenant, session.id) + hashlib.sha256(session.created_at.encode()).hexdigest()[:16]


def id_hash(tenant: str, session_id: str) -> str:
    """What the hashes of all sessions that ever had this id begin with."""
    return hashlib.sha256(session_name(tenant, session_id).encode()).hexdigest()[:32]


def _write(consolidation: Consolidation) -> str:
    return json.dumps(asdict(consolidation))


def _read(text: bytes) -> Consolidation:
    fields = json.loads(text)
    gate = {name: GateCheck(**check) for name, check in fields.pop("gate").items()}
    return Consolidation(gate=gate, **fields)


def _unknown(number: int) -> NotFound:
    return NotFound(f"there is no generation {number}: see GET /v1/generations", param="generation")

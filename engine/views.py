"""What the wire shows of turns and memories: a finished turn; a memory's levels, clocks, sizes and surprise.

Reads; changes nothing.
"""

from __future__ import annotations

from engine.config import CMS_FAST, CMS_MEDIUM, TITANS
from engine.core import (
    LevelReport,
    LevelView,
    MemoryReport,
    MemoryView,
    Session,
    SurprisePoint,
    Timing,
    Turn,
    TurnRequest,
    Usage,
)
from engine.live import Finished
from engine.model.hope import Hope, Memory
from engine.model.learning import level_named
from engine.model.portable import describe, level_of, pack_row
from engine.sessions.records import now_iso
from engine.sessions.store import SessionStore

MOST_TURNS = 1000


def clock_of(model: Hope, level: str) -> str:
    """When a level is updated, in words."""
    if level == TITANS:
        return f"every {model.config.chunk_memory} tokens"
    by_scope = {"tenant": "tenant consolidation", "training": "in training only"}
    known = {CMS_FAST: "every turn", CMS_MEDIUM: "session consolidation"}
    return known.get(level) or by_scope.get(level_named(model, level).scope, "never")


async def memory_view(store: SessionStore, tenant: str, session: Session, memory: Memory, model: Hope) -> MemoryView:
    """The view of one session; the surprise of its last thousand turns."""
    sizes: dict[str, int] = {}
    # Version 0 has nothing in the store, not even where an initial memory is other than zero.
    packed = pack_row(memory, model.config.chunk_projections) if session.version else {}
    for name, tensor in packed.items():
        sizes[level_of(name)] = sizes.get(level_of(name), 0) + tensor.numel() * tensor.element_size()
    levels = tuple(
        LevelView(
            level.name,
            level.scope,
            clock_of(model, level.name),
            level.updates,
            level.parameters,
            sizes.get(level.name, 0),
            level.norm,
            level.drift,
        )
        for level in describe(memory, model)
    )
    turns = await store.turns_at(tenant, session.id, max(0, session.num_turns - MOST_TURNS), MOST_TURNS)
    points = tuple(SurprisePoint(turn.index, turn.memory.surprise) for turn in turns)
    return MemoryView(session.version, session.generation, levels, points)


def make_turn(
    model: Hope, session: Session, before: Memory, request: TurnRequest, finished: Finished, turn_id: str
) -> Turn:
    """The Turn of a session, not yet committed; a turn that learned nothing shows the memory of before."""
    learned = finished.memory is not None
    # What sessions share no turn changes, and the session's own memory does not hold.
    memory = before if finished.memory is None else {**before, **finished.memory}
    levels = tuple(
        LevelReport(level.name, level.scope, level.updates, level.norm, level.drift)
        for level in describe(memory, model)
    )
    total = finished.prompt_tokens + finished.completion_tokens
    return Turn(
        id=turn_id,
        session_id=session.id,
        index=session.num_turns,
        created_at=now_iso(),
        message=request.message,
        reply=finished.reply,
        finish_reason=finished.finish_reason,
        usage=Usage(finished.prompt_tokens, finished.completion_tokens, total),
        memory=MemoryReport(session.version + learned, session.generation, learned, finished.surprise, levels),
        timing=Timing(
            milliseconds(finished.queue_s), milliseconds(finished.first_token_s), milliseconds(finished.total_s), 0.0
        ),
    )


def milliseconds(seconds: float) -> float:
    """Rounded to the microsecond."""
    return round(seconds * 1000, 3)

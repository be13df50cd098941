"""A session as one file: its memory in safetensors, itself and its transcript in the header beside the model's
fingerprint. What comes in is trusted in nothing. Knows no store and no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from engine.core import Session, Turn
from engine.errors import CorruptMemory, InvalidRequest, OtherModel
from engine.sessions.snapshot import annotate, read_metadata

SESSION, TRANSCRIPT, CONSOLIDATED, HISTORY = "session", "transcript", "num_consolidated_turns", "history"

_SESSION = TypeAdapter(Session)
_TURNS = TypeAdapter(list[Turn])
_HISTORY = TypeAdapter(dict[str, int])
_DIGEST = re.compile(r"(s:)?[0-9a-f]{32}")
_TURN_ID = re.compile(r"[A-Za-z0-9_\-]{1,128}")


@dataclass(frozen=True)
class Export:
    """What a file holds: the session as it was, its whole transcript, how many turns of it the worker had folded in,
    the digests of what was said (`SessionStore.history`), and its memory as the store keeps it."""

    session: Session
    turns: list[Turn]
    num_consolidated_turns: int
    history: dict[str, int]
    memory: bytes


def write_export(export: Export) -> bytes:
    """The file."""
    transcript = json.dumps([asdict(turn) for turn in export.turns], ensure_ascii=False)
    notes = {
        SESSION: json.dumps(asdict(export.session), ensure_ascii=False),
        CONSOLIDATED: str(export.num_consolidated_turns),
        HISTORY: json.dumps(export.history),
        TRANSCRIPT: transcript,
    }
    return annotate(export.memory, notes)


def read_export(file: bytes, fingerprint: str) -> Export:
    """What `write_export` was given.

    Args:
        fingerprint: of the model that is to go on with the memory.

    Raises:
        InvalidRequest: the file is damaged, or no export.
        OtherModel: it is of another model.
    """
    try:
        metadata = read_metadata(file)
    except CorruptMemory as error:
        raise InvalidRequest("the file is damaged, or not what an export wrote: send it as it was written") from error
    if not {SESSION, TRANSCRIPT, CONSOLIDATED, HISTORY} <= metadata.keys():
        raise InvalidRequest("the file holds a memory without its session: import what an export wrote")
    if metadata["fingerprint"] != fingerprint:
        raise OtherModel("the file is of another model: import it where that one is served")
    try:
        session = _SESSION.validate_json(metadata[SESSION], strict=True)
        turns = _TURNS.validate_json(metadata[TRANSCRIPT], strict=True)
        history = _HISTORY.validate_json(metadata[HISTORY], strict=True)
        consolidated = int(metadata[CONSOLIDATED])
        # Numbers that JSON does not have would be accepted here and break every later answer.
        json.dumps([asdict(session), *map(asdict, turns)], allow_nan=False)
    except (ValidationError, ValueError) as error:
        raise InvalidRequest("the session in the file's header is damaged: send the file as it was written") from error
    _check(session, turns, consolidated, history)
    return Export(session, turns, consolidated, history, annotate(file, {}))


def _check(session: Session, turns: Sequence[Turn], consolidated: int, history: dict[str, int]) -> None:
    """Raises InvalidRequest where session and transcript contradict each other."""
    counts = (session.version, session.num_turns, session.num_tokens, session.generation, session.memory_bytes)
    if (
        min(*counts, consolidated, len(turns) - consolidated) < 0
        or session.num_turns != len(turns)
        or session.version < len(turns)
        or [turn.index for turn in turns] != list(range(len(turns)))
        or len({turn.id for turn in turns}) < len(turns)
        or not all(_TURN_ID.fullmatch(turn.id) for turn in turns)
        or not all(_DIGEST.fullmatch(digest) and 0 <= index < len(turns) for digest, index in history.items())
    ):
        raise InvalidRequest("the transcript in the file's header does not fit its session: send the file as written")

"""A session as a file: what went in comes out, bit for bit; anything else is refused with a word."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from engine.errors import CorruptMemory, InvalidRequest, OtherModel
from engine.sessions.snapshot import FORMAT, _checksum, annotate, pack, unpack
from engine.sessions.transfer import CONSOLIDATED, HISTORY, SESSION, TRANSCRIPT, Export, read_export, write_export
from tests.engine.sessions.samples import make_session, make_turn

PRINT = "0123456789abcdef"
MEMORY = pack({"w": torch.arange(5.0), "none": torch.zeros(3)}, fingerprint=PRINT)


def exported(num_turns: int = 2, message: str = "Mein Hund heißt Max.") -> Export:
    turns = [make_turn(index, message) for index in range(num_turns)]
    session = replace(
        make_session(), version=num_turns + 1, num_turns=num_turns, num_tokens=20, memory_bytes=len(MEMORY)
    )
    history = {f"{index:032x}": index for index in range(num_turns)} | {f"s:{7:032x}": 0 for _ in turns}
    return Export(session, turns, min(1, num_turns), history, MEMORY)


@given(st.integers(0, 3), st.text())
@settings(deadline=None)
def test_what_is_written_is_read(num_turns: int, message: str) -> None:
    export = exported(num_turns, message.encode("utf-8", "ignore").decode())
    file = write_export(export)
    read = read_export(file, PRINT)
    assert (read.session, read.turns, read.num_consolidated_turns, read.history) == (
        export.session, export.turns, export.num_consolidated_turns, export.history,
    )  # fmt: skip
    for memory in (read.memory, file):
        found = unpack(memory, fingerprint=PRINT)
        assert torch.equal(found["w"], torch.arange(5.0))
        assert torch.equal(found["none"], torch.zeros(3))
    assert torch.equal(load(file)["w"], torch.arange(5.0)), "any reader of safetensors can open it"


@pytest.mark.parametrize("text", ["0" * 64, '"checksum": "' + "0" * 64 + '"', "\\", '"', "\x00", "🏔" * 100])
def test_no_message_breaks_the_file(text: str) -> None:
    assert read_export(write_export(exported(1, text)), PRINT).turns[0].message == text


def test_another_models_file_is_a_conflict() -> None:
    with pytest.raises(OtherModel, match="another model"):
        read_export(write_export(exported()), "f" * 16)


@pytest.mark.parametrize("place", [0, 7, 8, 9, 60, 200, -1])
def test_a_file_with_one_byte_changed_is_refused(place: int) -> None:
    file = bytearray(write_export(exported()))
    file[place] ^= 1
    with pytest.raises(InvalidRequest, match="as it was written"):
        read_export(bytes(file), PRINT)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", MEMORY[:-1]])
def test_what_is_no_file_of_ours_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_export(content, PRINT)


def test_a_memory_without_its_session_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="without its session"):
        read_export(MEMORY, PRINT)


@pytest.mark.parametrize(
    "changes",
    [
        {"zeros": None},
        {"fingerprint": None},
        {"zeros": "no JSON"},
        {"zeros": '{"a": ["zeros", [3]]}'},
        {"zeros": '{"a": ["float32", [-1]]}'},
        {"zeros": '{"a": 1}'},
        {"zeros": "[]"},
        {"zeros": '{"\\ud800": 1}'},
    ],
)
def test_a_header_made_by_hand_is_refused_as_well(changes: dict[str, str | None]) -> None:
    """Whatever it says, it is said to be damaged: when it is read, or when its memory is."""
    known = {"format": FORMAT, "fingerprint": PRINT, "zeros": "{}", "checksum": "0" * 64, **changes}
    blob = save({"w": torch.ones(2)}, metadata={name: value for name, value in known.items() if value is not None})
    blob = blob.replace(b"0" * 64, _checksum(blob, "0" * 64).encode(), 1)
    good = exported(0)
    with pytest.raises((InvalidRequest, CorruptMemory)):
        unpack(read_export(write_export(replace(good, memory=blob)), PRINT).memory, fingerprint=PRINT)


def _session(**changes: Any) -> dict[str, Any]:
    return {"session": asdict(exported().session) | changes}


def _turns(**changes: Any) -> dict[str, Any]:
    first, second = (asdict(turn) for turn in exported().turns)
    return {"turns": [first, second | changes]}


@pytest.mark.parametrize(
    "changed",
    [
        _session(num_turns=1),
        _session(num_turns="2"),
        _session(version=1),
        _session(version=-1),
        _session(num_tokens=-5),
        _session(metadata={"k": 1}),
        _session(metadata=None),
        _turns(index=7),
        _turns(id="turn-0"),
        _turns(id="a b"),
        _turns(message=3),
        _turns(timing={"queue_ms": float("nan"), "first_token_ms": 0.0, "total_ms": 0.0, "commit_ms": 0.0}),
        _turns(memory={}),
        {"turns": {}},
        {"consolidated": "3"},
        {"consolidated": "-1"},
        {"consolidated": "many"},
        {"history": {"f" * 32: 2}},
        {"history": {"f" * 32: -1}},
        {"history": {"f" * 32: "0"}},
        {"history": {"f" * 31: 0}},
        {"history": ["f" * 32]},
    ],
)
def test_a_file_made_by_hand_is_trusted_in_nothing(changed: dict[str, Any]) -> None:
    """Its checksum is right: whoever made it knew how."""
    good = exported()
    notes = {
        SESSION: json.dumps(changed.get("session", asdict(good.session))),
        TRANSCRIPT: json.dumps(changed.get("turns", [asdict(turn) for turn in good.turns])),
        CONSOLIDATED: changed.get("consolidated", "1"),
        HISTORY: json.dumps(changed.get("history", good.history)),
    }
    with pytest.raises(InvalidRequest, match=r"as (it was )?written"):
        read_export(annotate(MEMORY, notes), PRINT)

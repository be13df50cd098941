"""The chunk grid: every token once, in order, and no piece across a boundary of its row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.grid import Piece, cleared, cut, extend, own_chunk, put, take

CHUNK, FRAME = 4, 8


@st.composite
def _calls(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Positions and lengths of some rows, and the padded length of the call."""
    positions = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    lengths = draw(st.lists(st.integers(0, 21), min_size=len(positions), max_size=len(positions)))
    return positions, lengths, max(lengths) + draw(st.integers(0, 3))


def _places(piece: Piece, row: int) -> list[tuple[int, int]]:
    """(index in the call, slot in the frame) of the row's real tokens."""
    if piece.uneven is None:
        return [(piece.start + i, piece.slot + i) for i in range(piece.count)]
    uneven = piece.uneven
    real = uneven.valid_BN[row].nonzero().flatten().tolist()
    return [(int(uneven.index_BN[row, n]), int(uneven.slots_BN[row, n])) for n in real]


@given(_calls())
def test_every_token_is_read_once_in_its_own_slot(call: tuple[list[int], list[int], int]) -> None:
    positions, lengths, num_tokens = call
    pieces = cut(torch.tensor(positions), torch.tensor(lengths), num_tokens, CHUNK, FRAME)
    for row, (position, length) in enumerate(zip(positions, lengths, strict=True)):
        places = [place for piece in pieces for place in _places(piece, row)]
        assert [index for index, _ in places] == list(range(length))
        assert [slot for _, slot in places] == [(position + i) % FRAME for i in range(length)]


@given(_calls())
def test_no_piece_crosses_a_boundary_and_the_piece_that_fills_a_chunk_closes_it(
    call: tuple[list[int], list[int], int],
) -> None:
    positions, lengths, num_tokens = call
    for piece in cut(torch.tensor(positions), torch.tensor(lengths), num_tokens, CHUNK, FRAME):
        for row in range(len(positions)):
            slots = [slot for _, slot in _places(piece, row)]
            assert len({slot // CHUNK for slot in slots}) <= 1
            closes_memory = piece.closes_memory
            closes_projections = piece.closes_projections
            if piece.uneven is not None:
                closes_memory = bool(piece.uneven.closes_memory_B[row])
                closes_projections = bool(piece.uneven.closes_projections_B[row])
            assert closes_memory == bool(slots and (slots[-1] + 1) % CHUNK == 0)
            assert closes_projections == bool(slots and slots[-1] + 1 == FRAME)
            if slots:
                first = piece.first_slot if piece.uneven is None else int(piece.uneven.first_slot_B[row])
                assert first == slots[0] - slots[0] % CHUNK


@given(st.integers(0, 40), st.integers(0, 30))
def test_rows_that_stand_alike_need_no_masks(position: int, num_tokens: int) -> None:
    pieces = cut(torch.full((3,), position), None, num_tokens, CHUNK, FRAME)
    assert all(piece.uneven is None for piece in pieces)
    assert sum(piece.count for piece in pieces) == num_tokens


@given(_calls())
def test_tokens_taken_into_the_frame_and_put_back_are_the_same(
    call: tuple[list[int], list[int], int],
) -> None:
    positions, lengths, num_tokens = call
    rows = len(positions)
    # Value n+1 marks token n of a row; padding holds a value that must never arrive anywhere.
    marks = torch.full((rows, num_tokens), 1e6)
    frame, expected = torch.zeros(rows, FRAME), torch.zeros(rows, FRAME)
    for row, (position, length) in enumerate(zip(positions, lengths, strict=True)):
        marks[row, :length] = torch.arange(length) + 1.0
        before = position % FRAME
        frame[row, :before] = expected[row, :before] = 0.5
        for i in range(length):
            expected[row, (position + i) % FRAME] = i + 1.0
            if (position + i) % FRAME == FRAME - 1:
                expected[row] = 0
    marks_BHTK, frame_BHSK = marks[:, None, :, None], frame[:, None, :, None]
    out = torch.zeros_like(marks_BHTK)
    for piece in cut(torch.tensor(positions), torch.tensor(lengths), num_tokens, CHUNK, FRAME):
        new = take(marks_BHTK, piece)
        frame_BHSK = extend(frame_BHSK, new, piece)
        if piece.uneven is None:
            assert own_chunk(frame_BHSK, piece).shape[2] == piece.slot + piece.count - piece.first_slot
        closed_B = piece.uneven.closes_projections_B if piece.uneven else None
        frame_BHSK = cleared(frame_BHSK, piece.closes_projections, closed_B)
        if piece.uneven is not None:
            out = put(out, new, piece)
        else:
            out[:, :, piece.start : piece.start + piece.count] = new
    assert torch.equal(frame_BHSK[:, 0, :, 0], expected)
    for row, length in enumerate(lengths):
        assert torch.equal(out[row, 0, :length, 0], marks[row, :length])
        assert not out[row, 0, length:].any()

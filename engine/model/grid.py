"""The chunk grid: cuts a piece of text so that no cut crosses a chunk boundary of the row it belongs to.

The grid is anchored at every row's absolute position, so any split of a text into messages meets the same
boundaries (law 1). Knows positions and lengths; no weights.

Shapes: B rows, T tokens of this call, N tokens of one piece, S slots of one frame, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Tokens of every row that fall into one open chunk of M_memory.

    A piece is *even* where all rows stand at the same position and none is padded: then it is plain slices.
    Else rows are gathered, and padded steps are masked. Slots count within the frame, the larger of the two
    chunks (`chunk_projections`).

    Attributes:
        start, count: the token slice of an even piece; `count` is N in both cases.
        slot: first slot of an even piece.
        first_slot: where the open chunk of M_memory begins in the frame (even pieces).
        closes_memory, closes_projections: whether any row fills that chunk.
        index_BN, valid_BN, slots_BN: gather index, mask and slots of an uneven piece.
        closes_memory_B, closes_projections_B: the rows that fill it.
        first_slot_B: where each row's open chunk of M_memory begins.
    """

    start: int
    count: int
    slot: int
    first_slot: int
    closes_memory: bool
    closes_projections: bool
    uneven: Uneven | None = None


@dataclass(frozen=True)
class Uneven:
    """What an uneven piece needs beside: see `Piece`."""

    index_BN: Tensor
    valid_BN: Tensor
    slots_BN: Tensor
    first_slot_B: Tensor
    closes_memory_B: Tensor
    closes_projections_B: Tensor


def cut(position_B: Tensor, lengths_B: Tensor | None, num_tokens: int, chunk: int, frame: int) -> list[Piece]:
    """Pieces of a call of `num_tokens` tokens per row that never cross a multiple of `chunk`.

    Args:
        position_B: absolute position of every row before this call.
        lengths_B: real tokens per row, or None where no row is padded.
        chunk, frame: tokens between updates of M_memory and of the other memories; `chunk` divides `frame`.
    """
    positions = [int(p) for p in position_B.tolist()]
    lengths = [num_tokens] * len(positions) if lengths_B is None else [int(n) for n in lengths_B.tolist()]
    pieces: list[Piece] = []
    if len(set(positions)) == 1 and set(lengths) == {num_tokens}:
        done = 0
        while done < num_tokens:
            slot = (positions[0] + done) % frame
            count = min(chunk - slot % chunk, num_tokens - done)
            end = slot + count
            pieces.append(Piece(done, count, slot, slot - slot % chunk, end % chunk == 0, end == frame))
            done += count
        return pieces
    read = [0] * len(positions)
    while any(d < n for d, n in zip(read, lengths, strict=True)):
        slots = [(p + d) % frame for p, d in zip(positions, read, strict=True)]
        counts = [min(chunk - s % chunk, n - d) for s, d, n in zip(slots, read, lengths, strict=True)]
        pieces.append(_uneven_piece(read, slots, counts, chunk, frame, position_B.device))
        read = [d + c for d, c in zip(read, counts, strict=True)]
    return pieces


def _uneven_piece(
    read: list[int], slots: list[int], counts: list[int], chunk: int, frame: int, device: torch.device
) -> Piece:
    read_B, slot_B, count_B = (torch.tensor(x, device=device) for x in (read, slots, counts))
    steps = torch.arange(max(counts), device=device).unsqueeze(0)
    # A padded step repeats the row's last real token (or its last read one): masked, it reaches no state.
    within = torch.minimum(steps, (count_B - 1).clamp_min(0).unsqueeze(1))
    end_B = slot_B + count_B
    closes_memory = (end_B % chunk == 0) & (count_B > 0)
    closes_projections = (end_B == frame) & (count_B > 0)
    idle = (count_B == 0).unsqueeze(1)
    index = torch.where(idle, (read_B.unsqueeze(1) - 1).clamp_min(0), read_B.unsqueeze(1) + within)
    uneven = Uneven(
        index,
        steps < count_B.unsqueeze(1),
        slot_B.unsqueeze(1) + within,
        slot_B - slot_B % chunk,
        closes_memory,
        closes_projections,
    )
    return Piece(0, max(counts), 0, 0, bool(closes_memory.any()), bool(closes_projections.any()), uneven)


def take(x_BHTK: Tensor, piece: Piece) -> Tensor:
    """The piece's tokens -> [B,H,N,K]."""
    if piece.uneven is None:
        if piece.count == x_BHTK.shape[2]:
            return x_BHTK
        return x_BHTK[:, :, piece.start : piece.start + piece.count]
    index = piece.uneven.index_BN[:, None, :, None].expand(-1, x_BHTK.shape[1], -1, x_BHTK.shape[3])
    return x_BHTK.gather(2, index)


def put(out_BHTK: Tensor, y_BHNK: Tensor, piece: Piece) -> Tensor:
    """`out` with the uneven piece's real tokens added at their places (which held zero)."""
    assert piece.uneven is not None
    index = piece.uneven.index_BN[:, None, :, None].expand(-1, y_BHNK.shape[1], -1, y_BHNK.shape[3])
    return out_BHTK.scatter_add(2, index, y_BHNK * piece.uneven.valid_BN[:, None, :, None])


def extend(frame_BHSK: Tensor, new_BHNK: Tensor, piece: Piece) -> Tensor:
    """The frame with the piece's tokens in their slots; a slot that nothing has filled is zero."""
    if piece.uneven is None:
        if piece.count == frame_BHSK.shape[2]:
            return new_BHNK
        return torch.slice_scatter(frame_BHSK, new_BHNK, 2, piece.slot, piece.slot + piece.count)
    index = piece.uneven.slots_BN[:, None, :, None].expand_as(new_BHNK)
    return frame_BHSK.scatter_add(2, index, new_BHNK * piece.uneven.valid_BN[:, None, :, None])


def own_chunk(frame_BHSK: Tensor, piece: Piece) -> Tensor:
    """The filled slots of M_memory's open chunk. Uneven pieces keep all slots: an empty one is zero."""
    if piece.uneven is not None:
        return frame_BHSK
    return frame_BHSK[:, :, piece.first_slot : piece.slot + piece.count]


def cleared(frame_BHSK: Tensor, closed: bool, closed_B: Tensor | None) -> Tensor:
    """The frame to carry on: empty in the rows that have `closed` it (None: all of them, or none)."""
    if not closed:
        return frame_BHSK
    if closed_B is None:
        # Laid out like the empty frame of a new state: compiled code is for one layout.
        return torch.zeros_like(frame_BHSK, memory_format=torch.contiguous_format)
    return frame_BHSK.masked_fill(closed_B[:, None, None, None], 0.0)

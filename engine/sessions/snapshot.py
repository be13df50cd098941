"""A session's memory as bytes and back, bit for bit: safetensors with format, model fingerprint and checksum.

Tensors are named and unbatched; what the names mean is not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from engine.errors import CorruptMemory, OtherModel

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "hope-memory-1"

_LENGTH_BYTES = 8  # safetensors opens with the length of its JSON header, little endian
_NO_CHECKSUM = "0" * 64
# What `pack` writes into the header, beside the checksum.
_OWN = ("format", "fingerprint", "zeros")


def pack(tensors: Mapping[str, Tensor], *, fingerprint: str) -> bytes:
    """The bytes of a memory.

    Tensors whose bytes are all zero take no room but their name: a level never written costs nothing.

    Args:
        tensors: the memory of one session, by name, without a batch dimension.
        fingerprint: of the model the memory grew in.
    """
    kept: dict[str, Tensor] = {}
    zeros: dict[str, list[Any]] = {}
    for name, tensor in tensors.items():
        if _is_zero(tensor):
            zeros[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        else:
            # A copy of its own: rows of a batch share their storage, which safetensors refuses.
            kept[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    metadata = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "zeros": json.dumps(zeros),
        "checksum": _NO_CHECKSUM,
    }
    blob = save(kept, metadata=metadata)
    return blob.replace(_NO_CHECKSUM.encode(), _checksum(blob, _NO_CHECKSUM).encode(), 1)


def unpack(blob: bytes, *, fingerprint: str) -> dict[str, Tensor]:
    """The memory that `pack` was given, bit for bit, on the CPU.

    Raises:
        CorruptMemory: the bytes are damaged or of another format.
        OtherModel: they are of another model.
    """
    metadata = check_model(blob, fingerprint=fingerprint)
    try:
        tensors = load(blob)
    except SafetensorError as error:
        raise CorruptMemory("the stored memory is not readable; roll back to an earlier version") from error
    try:
        for name, (dtype, shape) in json.loads(metadata["zeros"]).items():
            tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CorruptMemory("the stored memory is not readable; roll back to an earlier version") from error
    return tensors


def check_model(blob: bytes, *, fingerprint: str) -> dict[str, str]:
    """As `read_metadata`; raises OtherModel where the memory did not grow in this model."""
    metadata = read_metadata(blob)
    if metadata["fingerprint"] != fingerprint:
        raise OtherModel(
            "the stored memory is of another model than the one that is served; the operator can have this one read "
            "the transcript again with `hope relearn`, or serve the other one"
        )
    return metadata


def annotate(blob: bytes, notes: Mapping[str, str]) -> bytes:
    """The same memory with `notes` in its header, in place of those it had; without any, as `pack` made it.

    Raises:
        CorruptMemory: the bytes are damaged or of another format.
    """
    metadata = read_metadata(blob)
    own = {name: metadata[name] for name in _OWN}
    # The checksum first: nothing in a note may be taken for its place.
    changed = {"checksum": _NO_CHECKSUM, **own, **notes}
    header = json.loads(_header(blob)) | {"__metadata__": changed}
    ordered = {"__metadata__": header.pop("__metadata__"), **header}
    text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    whole = len(text).to_bytes(_LENGTH_BYTES, "little") + text + blob[_LENGTH_BYTES + len(_header(blob)) :]
    return whole.replace(_NO_CHECKSUM.encode(), _checksum(whole, _NO_CHECKSUM).encode(), 1)


def read_metadata(blob: bytes) -> dict[str, str]:
    """What stands beside the tensors: `format`, `fingerprint`, `zeros`, `checksum` and notes.

    Raises:
        CorruptMemory: the bytes are damaged or of another format.
    """
    metadata = _metadata(blob)
    if metadata.get("format") != FORMAT:
        raise CorruptMemory(f"the stored memory is not of format {FORMAT}: use the release that wrote it")
    if _checksum(blob, metadata.get("checksum", "")) != metadata.get("checksum"):
        raise CorruptMemory("the stored memory is damaged (its checksum differs); roll back to another")
    # Whoever makes a file by hand can make its checksum too.
    if not all(name in metadata and metadata[name].isascii() for name in _OWN):
        raise CorruptMemory("the stored memory is damaged: its header lacks a part")
    return metadata


def _is_zero(tensor: Tensor) -> bool:
    """True where every bit is zero; a -0.0 is not, or it would come back as 0.0."""
    flat = tensor.detach().reshape(-1).contiguous()
    return flat.numel() > 0 and not bool(flat.view(torch.uint8).any())


def _metadata(blob: bytes) -> dict[str, str]:
    try:
        header = json.loads(_header(blob))
        metadata = header["__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptMemory("the stored memory is damaged: it has no readable header") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptMemory("the stored memory is damaged: it has no readable header")
    return metadata


def _header(blob: bytes) -> bytes:
    end = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "little")
    return blob[_LENGTH_BYTES:end]


def _checksum(blob: bytes, written: str) -> str:
    """SHA-256 of the whole blob, taken as if its checksum field were zeros."""
    header = _header(blob)
    digest = hashlib.sha256(blob[:_LENGTH_BYTES])
    digest.update(header.replace(written.encode(), _NO_CHECKSUM.encode(), 1) if written else header)
    digest.update(memoryview(blob)[_LENGTH_BYTES + len(header) :])
    return digest.hexdigest()

"""Law 3 for the bytes: packed and unpacked is what was there, bit for bit; anything else is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from engine.errors import CorruptMemory, OtherModel
from engine.sessions.snapshot import FORMAT, pack, unpack

PRINT = "0123456789abcdef"


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """All that tells two tensors apart, NaN payloads and the sign of zero included."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
    return tensor.dtype, tuple(tensor.shape), raw.numpy().tobytes()


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size_bytes = torch.Size(shape).numel() * dtype.itemsize
    raw = draw(st.one_of(st.binary(min_size=size_bytes, max_size=size_bytes), st.just(bytes(size_bytes))))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


@given(st.dictionaries(st.text("abc.0123", min_size=1, max_size=20), tensors(), max_size=6))
@settings(deadline=None)
def test_law_3_packed_and_unpacked_is_the_same_bit_for_bit(memory: dict[str, Tensor]) -> None:
    found = unpack(pack(memory, fingerprint=PRINT), fingerprint=PRINT)
    assert {name: bits(value) for name, value in found.items()} == {name: bits(value) for name, value in memory.items()}


def test_law_3_special_numbers_survive() -> None:
    memory = {
        "negative zero": torch.tensor([-0.0, 0.0]),
        "not numbers": torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-45]),
        "position": torch.tensor(2**62, dtype=torch.int64),
    }
    found = unpack(pack(memory, fingerprint=PRINT), fingerprint=PRINT)
    assert {name: bits(value) for name, value in found.items()} == {name: bits(value) for name, value in memory.items()}


def test_rows_of_one_batch_are_packed_apart() -> None:
    batch = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    memory = {"row": batch[1], "also row": batch[1], "column": batch[:, 2]}
    found = unpack(pack(memory, fingerprint=PRINT), fingerprint=PRINT)
    assert torch.equal(found["row"], batch[1])
    assert torch.equal(found["also row"], batch[1])
    assert torch.equal(found["column"], batch[:, 2])


def test_a_level_never_written_takes_no_bytes() -> None:
    written = {"titans.0.w": torch.ones(8)}
    unwritten = {f"cms.medium.{layer}.w1": torch.zeros(192, 96) for layer in range(4)}
    without, with_zeros = pack(written, fingerprint=PRINT), pack(written | unwritten, fingerprint=PRINT)
    assert len(with_zeros) - len(without) < 500  # their names; the values would be 294,912
    assert torch.equal(unpack(with_zeros, fingerprint=PRINT)["cms.medium.3.w1"], torch.zeros(192, 96))


def test_what_is_unpacked_may_be_written_to() -> None:
    blob = pack({"w": torch.ones(3)}, fingerprint=PRINT)
    unpack(blob, fingerprint=PRINT)["w"].add_(1)
    assert torch.equal(unpack(blob, fingerprint=PRINT)["w"], torch.ones(3))


def test_any_safetensors_reader_can_open_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("blob") / "memory.safetensors"
    path.write_bytes(pack({"w": torch.ones(3)}, fingerprint=PRINT))
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("w"), torch.ones(3))
        header = file.metadata()
    assert header["format"] == FORMAT
    assert header["fingerprint"] == PRINT
    assert len(header["checksum"]) == 64


BLOB = pack({"titans.0.w": torch.randn(5, 3), "cms.fast.0.w1": torch.zeros(4)}, fingerprint=PRINT)


@given(st.integers(0, len(BLOB) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(BLOB)
    damaged[position] ^= change
    with pytest.raises(CorruptMemory):
        unpack(bytes(damaged), fingerprint=PRINT)


@given(st.integers(0, len(BLOB) - 1))
@settings(deadline=None)
def test_a_torn_blob_is_noticed(length: int) -> None:
    with pytest.raises(CorruptMemory):
        unpack(BLOB[:length], fingerprint=PRINT)


def test_another_models_memory_is_refused() -> None:
    with pytest.raises(OtherModel, match="hope relearn"):
        unpack(BLOB, fingerprint="fedcba9876543210")


def test_a_safetensors_file_that_is_no_memory_is_refused() -> None:
    for metadata in (None, {}, {"format": "hope-memory-0"}, {"format": FORMAT}):
        with pytest.raises(CorruptMemory):
            unpack(save({"w": torch.ones(2)}, metadata=metadata), fingerprint=PRINT)

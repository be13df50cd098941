"""Text that never is in memory as a whole: every token once an epoch, shuffled alike for a seed, resumed exactly."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.tokenizer import END
from engine.training import stream as stream_module
from engine.training.stream import Position, TextStream
from tests.engine.training.samples import dialogue_tokenizer

LINES = [f"In the year {year} the river rose, and nobody knew why — not even Zoë.\n" for year in range(1700, 1790)]
RECORDS = ["A fox came by.", "", "It rained.\nAll day."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind."""
    (tmp_path / "b.txt").write_text("".join(LINES), "utf-8")
    (tmp_path / "a.txt").write_text("One.\n<|endoftext|>\n<|endoftext|>\nTwo.\n", "utf-8")
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in RECORDS) + "\n\n", "utf-8")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Packed.", "id": 3}\n{"text": "Both."}'))
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress("".join(LINES[:5]).encode()))
    return tmp_path


def stream(folder: Path, *names: str, seed: int = 1, buffer_rows: int = 4) -> TextStream:
    return TextStream([str(folder / name) for name in names or ("*",)], dialogue_tokenizer(), seed, buffer_rows)


def ids_of(*texts: str | None) -> list[int]:
    return [i for text in texts for i in ([END] if text is None else dialogue_tokenizer().encode(text))]


def flat(rows: Sequence[Sequence[int]]) -> list[int]:
    return [token for row in rows for token in row]


def test_an_epoch_is_every_token_of_every_file_in_order(folder: Path) -> None:
    expected = ids_of("One.\n", None, "Two.\n", None, *LINES, None, RECORDS[0], None, RECORDS[2], None)
    expected += ids_of("Packed.", None, "Both.", None, *LINES[:5], None)
    # A buffer of one row shuffles nothing.
    rows = stream(folder, buffer_rows=1).rows(2 * len(expected) // 7, 7)
    assert flat(rows) == (2 * expected)[: 7 * len(rows)]


def test_rows_are_shuffled_within_the_buffer_and_alike_for_a_seed(folder: Path) -> None:
    inorder = stream(folder, buffer_rows=1).rows(24, 10)
    rows = stream(folder).rows(24, 10)
    assert rows == stream(folder).rows(24, 10)
    assert rows != stream(folder, seed=2).rows(24, 10)
    assert rows != inorder
    for begin in range(0, 24, 4):
        assert sorted(rows[begin : begin + 4]) == sorted(inorder[begin : begin + 4])


@pytest.mark.parametrize("given", [0, 1, 3, 4, 5, 8, 17, 90])
def test_a_stream_goes_on_where_another_stood(folder: Path, given: int) -> None:
    first = stream(folder)
    first.rows(given, 37)
    position = Position.from_json(first.position.to_json())
    resumed = stream(folder)
    resumed.seek(position)
    assert resumed.position == position
    assert resumed.rows(40, 37) == first.rows(40, 37)
    assert resumed.rows(9, 12) == first.rows(9, 12), "also where rows change their length"
    assert resumed.position == first.position


def test_rows_of_another_length_pass_over_what_the_buffer_holds(folder: Path) -> None:
    texts = stream(folder, "b.txt")
    texts.rows(1, 10)
    assert sorted(flat(texts.rows(4, 5))) == sorted(ids_of(*LINES)[40:60])


def test_a_line_longer_than_a_piece_is_whole_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PIECE_BYTES", 16)
    (folder / "long.txt").write_text("日本語の長い文章です。" * 20, "utf-8")
    ids = flat(stream(folder, "long.txt", buffer_rows=1).rows(1000, 1))
    text = dialogue_tokenizer().decode(ids[: ids.index(END)])
    assert text.replace(" ", "") == "日本語の長い文章です。" * 20
    first, resumed = stream(folder, "long.txt"), stream(folder, "long.txt")
    first.rows(11, 3)
    resumed.seek(first.position)
    assert resumed.rows(30, 3) == first.rows(30, 3)


def test_bytes_that_are_no_text_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_bytes(b"Good.\n\xff\xfeBad.\nCut \xe6\x97")
    ids = flat(stream(tmp_path, buffer_rows=1).rows(80, 1))
    text = dialogue_tokenizer().decode(ids[: ids.index(END)])
    assert text.split() == ["Good.", "��Bad.", "Cut", "�"]


def test_memory_is_bounded_whatever_the_text(tmp_path: Path) -> None:
    text = tmp_path / "large.txt"
    text.write_text("".join(LINES) * 400, "utf-8")
    assert text.stat().st_size > 2_500_000
    texts = stream(tmp_path, buffer_rows=32)
    tracemalloc.start()
    try:
        texts.rows(100, 129)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
    assert texts.position.begin.offset < text.stat().st_size / 10, "it reads no further than it gives"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", b"", "no text"),
        ("none.jsonl", b'{"text": ""}\n\n', "no text"),
        ("bad.jsonl", b'{"text": "Fine."}\n{"texts": []}\n', "record at byte 18"),
        ("bad.jsonl", b'"text"\n', "record at byte 0"),
        ("bad.jsonl", b"not json\n", "record at byte 0"),
        ("image.png", b"", r"none of \.txt"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=words):
        stream(tmp_path).rows(20, 5)


def test_a_pattern_without_files_and_a_file_that_is_gone_are_named(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="no file matches"):
        stream(folder, "*.txt", "*.text")
    texts = stream(folder, "b.txt")
    texts.rows(1, 5)
    with pytest.raises(InvalidRequest, match=r"b\.txt.*does not name"):
        stream(folder, "a.txt").seek(texts.position)

"""Plain text as rows of tokens, without end and without ever being in memory as a whole.

Files are read piece by piece in the order of their names, again and again; rows are shuffled within a bounded buffer.
Where a stream stands is a few numbers: it goes on from them exactly. Knows no batches and no model.
"""

from __future__ import annotations

import codecs
import gzip
import json
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from glob import glob
from io import BufferedIOBase
from pathlib import Path

from engine.errors import InvalidRequest
from engine.tokenizer import END, Tokenizer

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
# A line longer than a piece is read in several; a record of JSON must be whole to be read at all.
PIECE_BYTES, RECORD_BYTES = 2**16, 2**24
BUFFER_ROWS = 512
DOCUMENT_END = "<|endoftext|>"


@dataclass(frozen=True)
class Place:
    """Where the reading stands: before token `token` of the piece that begins at byte `offset` of `file`.

    Attributes:
        epoch: times that all files were read before.
        file: path as it was found; empty at the very start.
        offset: bytes of the (unpacked) file before the piece.
    """

    epoch: int = 0
    file: str = ""
    offset: int = 0
    token: int = 0


@dataclass(frozen=True)
class Position:
    """Where a stream of rows stands: `given` rows of buffer `number`, whose text begins at `begin`.

    Attributes:
        row_tokens: length of the buffer's rows; 0 before the first.
    """

    begin: Place = Place()
    number: int = 0
    given: int = 0
    row_tokens: int = 0

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Position:
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**(fields | {"begin": Place(**fields["begin"])}))


class TextStream:
    """Rows of the text in files.

    Args:
        patterns: globs of .txt (running text; a line `<|endoftext|>` ends a document) and .jsonl (one document a
            line, its `text`), as they are or with .gz.
        tokenizer: makes tokens of it; documents end with END.
        seed: of the shuffling.
        buffer_rows: rows that are shuffled among each other; all that is in memory.

    Raises:
        InvalidRequest: no file matches a pattern, one is of another kind or there is no text; from `rows` also where
            a record is broken.
    """

    def __init__(
        self, patterns: Sequence[str], tokenizer: Tokenizer, seed: int, buffer_rows: int = BUFFER_ROWS
    ) -> None:
        self._reader = _Reader(_files(patterns), tokenizer)
        self._seed, self._buffer_rows = seed, buffer_rows
        self._position = Position()
        self._buffer: list[array[int]] = []

    @property
    def position(self) -> Position:
        """Where the stream stands, for `seek`."""
        return self._position

    def seek(self, position: Position) -> None:
        """Goes on as the stream did that stood at `position`, over the same files with the same seed."""
        self._reader.seek(position.begin)
        self._position = position
        # Also of a buffer that was given to its end: the next one begins behind it.
        self._buffer = self._filled(position) if position.row_tokens else []

    def rows(self, count: int, row_tokens: int) -> list[list[int]]:
        """The next `count` rows. Where their length is another than before, what the buffer holds is passed over."""
        return [self._next(row_tokens) for _ in range(count)]

    def _next(self, row_tokens: int) -> list[int]:
        position = self._position
        if not self._buffer or position.row_tokens != row_tokens:
            number = position.number + (position.row_tokens > 0)
            position = Position(self._reader.place, number, 0, row_tokens)
            self._buffer = self._filled(position)
        self._position = replace(position, given=position.given + 1)
        return self._buffer.pop().tolist()

    def _filled(self, position: Position) -> list[array[int]]:
        """The buffer's rows that are still to be given, the next one last."""
        rows = [self._reader.take(position.row_tokens) for _ in range(self._buffer_rows)]
        random.Random(f"{self._seed}:{position.number}").shuffle(rows)
        return rows[: self._buffer_rows - position.given]


class _Reader:
    """The tokens of all files, one after another, from any place on."""

    def __init__(self, files: list[str], tokenizer: Tokenizer) -> None:
        self._files, self._tokenizer = files, tokenizer
        self.seek(Place())

    @property
    def place(self) -> Place:
        """Where the next token is."""
        return replace(self._piece, token=self._used)

    def seek(self, place: Place) -> None:
        """Goes on at `place`; InvalidRequest where its file is not there any more."""
        file = place.file or self._files[0]
        if file not in self._files:
            raise InvalidRequest(f"the run stands in the text '{file}', which --text does not name", param="text")
        self._pieces = self._from(place.epoch, self._files.index(file), place.offset)
        self._ids: array[int] = array("i")
        self._piece, self._used = replace(place, file=file, token=0), 0
        if place.token:
            self._piece, self._ids = next(self._pieces)
            self._used = place.token

    def take(self, count: int) -> array[int]:
        """The next `count` tokens."""
        taken: array[int] = array("i")
        while len(taken) < count:
            if self._used == len(self._ids):
                self._piece, self._ids = next(self._pieces)
                self._used = 0
            part = self._ids[self._used : self._used + count - len(taken)]
            taken += part
            self._used += len(part)
        return taken

    def _from(self, epoch: int, first: int, offset: int) -> Iterator[tuple[Place, array[int]]]:
        """Places and tokens of all pieces that have any, from an offset of a file on, without end."""
        while True:
            any_text = offset > 0 or first > 0
            for file in self._files[first:]:
                for begin, ids in self._document_pieces(file, offset):
                    any_text = True
                    yield Place(epoch, file, begin), ids
                offset = 0
            if not any_text:
                raise InvalidRequest(f"there is no text in {', '.join(self._files)}", param="text")
            epoch, first = epoch + 1, 0

    def _document_pieces(self, file: str, offset: int) -> Iterator[tuple[int, array[int]]]:
        encode = self._tokenizer.encode
        is_open = offset > 0
        for begin, text in _records(file, offset) if ".jsonl" in _kind(file) else _lines(file, offset):
            ends = text is None or ".jsonl" in _kind(file)
            ids = array("i", encode(text or "") + ([END] if ends and (text or is_open) else []))
            is_open = not ends
            if ids:
                yield begin, ids


def _files(patterns: Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        files = sorted(file for file in glob(pattern, recursive=True) if Path(file).is_file())
        if not files:
            raise InvalidRequest(f"no file matches '{pattern}'", param="text")
        found += [file for file in files if file not in found]
    for file in found:
        _kind(file)
    return found


def _kind(file: str) -> str:
    for suffix in SUFFIXES:
        if file.endswith(suffix):
            return suffix
    raise InvalidRequest(f"'{file}' is none of {', '.join(SUFFIXES)}", param="text")


def _open(file: str) -> BufferedIOBase:
    return gzip.open(file, "rb") if file.endswith(".gz") else open(file, "rb")


def _lines(file: str, offset: int) -> Iterator[tuple[int, str | None]]:
    """Byte offsets and texts of lines, or of parts of long ones; None where a document ends, also at the file's."""
    with _open(file) as data:
        data.seek(offset)
        rest = b""
        # Pieces are the same from wherever reading begins.
        while block := rest + data.readline(PIECE_BYTES - len(rest)):
            # What is cut inside a character waits for the rest of it.
            text, used = codecs.utf_8_decode(block, "replace", len(block) == len(rest))
            rest = block[used:]
            yield offset, None if text.strip() == DOCUMENT_END else text
            offset += used
    yield offset, None


def _records(file: str, offset: int) -> Iterator[tuple[int, str]]:
    """Byte offsets and texts of a .jsonl file's records."""
    with _open(file) as data:
        data.seek(offset)
        while line := data.readline(RECORD_BYTES):
            if line.strip():
                yield offset, _text(line, file, offset)
            offset += len(line)


def _text(line: bytes, file: str, offset: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise InvalidRequest(f"the record at byte {offset} of '{file}' is no JSON object with a 'text'", param="text")
    return text

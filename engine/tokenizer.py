"""Byte-level BPE with the turn structure's special tokens: text to ids and back, without loss.

Special ids stand outside the BPE's vocabulary, so no text a user types can ever become one.
Knows nothing of the model.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from engine.core import Said

PAD, USER, ASSISTANT, END = 0, 1, 2, 3
NUM_SPECIAL = 8  # four in use, four kept for later formats


class Tokenizer:
    """Ids of text; ids below `NUM_SPECIAL` are special and never text."""

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        self._bpe = bpe
        byte_of = _byte_of_character()
        self._bytes = [b""] * NUM_SPECIAL + [
            bytes(byte_of[c] for c in bpe.id_to_token(i) or "") for i in range(bpe.get_vocab_size())
        ]

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a tokenizer that `save` wrote."""
        return cls(tokenizers.Tokenizer.from_file(str(path)))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Trains merges on `texts`; all 256 bytes are always in, so any Unicode text can be written."""
        bpe = tokenizers.Tokenizer(models.BPE())
        # Digits one by one: a number is then copied digit by digit, not as one of a thousand rare tokens.
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - NUM_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            min_frequency=2,
        )
        bpe.train_from_iterator((" " + text for text in texts), trainer)
        return cls(bpe)

    def save(self, path: Path) -> None:
        """Writes the tokenizer as one JSON file."""
        self._bpe.save(str(path))

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. A space is put before it, so that a word has the same ids wherever it stands."""
        if not text:
            return []
        ids = self._bpe.encode(" " + text, add_special_tokens=False).ids
        return [i + NUM_SPECIAL for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special ids give nothing, bytes that are not UTF-8 give U+FFFD."""
        data = b"".join(self._bytes[i] for i in ids)
        return data.removeprefix(b" ").decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder for ids as they come."""
        return StreamDecoder(self._bytes)

    def read_turn(self, message: str, *, reply: bool, before: Iterable[Said] = ()) -> list[int]:
        """Ids of a user's turn up to where the assistant speaks, or up to its end where no reply is wanted.

        Args:
            before: what was said earlier and is to be read with it; what no user said and no assistant is read as
                what a user said.
        """
        ids: list[int] = []
        for said in before:
            if said.role != "assistant":
                ids += [USER, *self.encode(said.text), END]
            elif ids:
                ids[-1:] = [ASSISTANT, *self.encode(said.text), END]
            else:
                ids = [ASSISTANT, *self.encode(said.text), END]
        return [*ids, USER, *self.encode(message), ASSISTANT if reply else END]


class StreamDecoder:
    """Turns ids into text piece by piece, never emitting half a character."""

    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False

    def push(self, token: int) -> str:
        """Text that is complete after `token`; may be empty."""
        data = self.bytes_of(token)
        self._begun = self._begun or bool(self._table[token])
        return self._utf8.decode(data)

    def bytes_of(self, token: int) -> bytes:
        """What `token` would add to the text, as its next one; nothing for a special id."""
        data = self._table[token]
        return data if self._begun else data.removeprefix(b" ")

    def broken_by(self, token: int) -> bool:
        """Whether `token` would leave a character that has begun without its rest."""
        begun, _ = self._utf8.getstate()
        try:
            codecs.getincrementaldecoder("utf-8")().decode(begun + self._table[token][:1])
        except UnicodeDecodeError:
            return bool(begun)
        return False

    def finish(self) -> str:
        """What is left: U+FFFD where the last character never became whole."""
        return self._utf8.decode(b"", final=True)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, reversed."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others: Iterator[int] = (b for b in range(256) if b not in set(printable))
    table.update({chr(0x100 + n): b for n, b in enumerate(others)})
    return table

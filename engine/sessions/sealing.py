"""Memories at rest under a key: signed with HMAC-SHA256, or encrypted with AES-256-GCM; without a key as they are.

A seal binds a memory to its place: one that is moved to another session, tenant or version no longer opens. Knows no
store. The form of a sealed memory, after the sign `hopeseal`: a byte for this form (1), a byte for the method, four
bytes that name the key; then for HMAC the memory and 32 bytes of signature, for AES 12 of nonce and the ciphertext.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import StoreSettings
from engine.errors import CorruptMemory, InvalidRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_SIGN = b"hopeseal"
_FORM = 1
_SIGNED, _ENCRYPTED = 1, 2
_HEADER_BYTES = len(_SIGN) + 2 + 4
_SIGNATURE_BYTES = 32
_NONCE_BYTES = 12
_KEY_BYTES = 32
_HOW = "one key a line, each 64 hex digits, as `openssl rand -hex 32` makes them"


@dataclass(frozen=True)
class Seal:
    """Seals memories on their way into the store and opens them on their way out.

    Attributes:
        keys: by their names, the first seals; the others open what was sealed before. None: nothing is sealed.
        encrypt: True encrypts, which takes the package `cryptography`; False signs.
        refuse_unsealed: True opens nothing that was stored before there was a key.
    """

    keys: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    encrypt: bool = False
    refuse_unsealed: bool = False

    def close(self, memory: bytes, *place: str | int) -> bytes:
        """What the store keeps of a memory.

        Args:
            place: where it belongs; it opens nowhere else.
        """
        if not self.keys:
            return memory
        name, key = next(iter(self.keys.items()))
        header = _SIGN + bytes([_FORM, _ENCRYPTED if self.encrypt else _SIGNED]) + name
        if not self.encrypt:
            return header + memory + _signature(key, header, place, memory)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return header + nonce + _cipher(key).encrypt(nonce, memory, header + _bound(place))

    def open(self, stored: bytes, *place: str | int) -> bytes:
        """The memory that `close` was given.

        Raises:
            CorruptMemory: it was changed or moved, or its key is not here.
        """
        if not stored.startswith(_SIGN):
            if self.keys and self.refuse_unsealed:
                raise CorruptMemory("the stored memory bears no seal, and HOPE_REFUSE_UNSEALED says that it must")
            return stored
        header, body = stored[:_HEADER_BYTES], stored[_HEADER_BYTES:]
        if len(header) < _HEADER_BYTES or header[len(_SIGN)] != _FORM:
            raise CorruptMemory("the stored memory is sealed in a form that this release does not know")
        key = self.keys.get(header[len(_SIGN) + 2 :])
        if key is None:
            raise CorruptMemory(
                "the stored memory is sealed with a key that is not here: name the file of that key with "
                "HOPE_STORE_KEY_FILE, or add the key to it"
            )
        unseal = _decrypted if header[len(_SIGN) + 1] == _ENCRYPTED else _verified
        opened = unseal(key, header, place, body)
        if opened is None:
            raise CorruptMemory("the stored memory was changed, or belongs elsewhere: its seal does not fit")
        return opened


UNSEALED = Seal()


def seal_of(settings: StoreSettings) -> Seal:
    """See `read_seal`."""
    return read_seal(
        settings.store_key_file, encrypt=settings.encrypt_memories, refuse_unsealed=settings.refuse_unsealed
    )


def read_seal(key_file: Path | None, *, encrypt: bool = False, refuse_unsealed: bool = False) -> Seal:
    """The seal of the keys in a file; without a file, one that seals nothing.

    Raises:
        InvalidRequest: the file cannot be used, encryption is asked for without a key, or it is not installed.
    """
    if key_file is None:
        if encrypt or refuse_unsealed:
            raise InvalidRequest("sealed memories need a key: name a file with HOPE_STORE_KEY_FILE", param="key_file")
        return UNSEALED
    try:
        lines = key_file.read_text("ascii").split()
        keys = [bytes.fromhex(line) for line in lines]
    except (OSError, ValueError):
        raise InvalidRequest(f"the key file cannot be read; it holds {_HOW}", param="key_file") from None
    if not keys or any(len(key) != _KEY_BYTES for key in keys):
        raise InvalidRequest(f"the key file holds no key, or one of another length; it holds {_HOW}", param="key_file")
    seal = Seal({_name(key): key for key in keys}, encrypt, refuse_unsealed)
    if encrypt:
        _cipher(keys[0])
    return seal


def _name(key: bytes) -> bytes:
    return hashlib.sha256(b"name" + key).digest()[:4]


def _derived(key: bytes, purpose: bytes) -> bytes:
    """Of one key two, so that a signature never tells of a ciphertext."""
    return hmac.digest(key, purpose, "sha256")


def _bound(place: tuple[str | int, ...]) -> bytes:
    return json.dumps(place).encode()


def _signature(key: bytes, header: bytes, place: tuple[str | int, ...], memory: bytes) -> bytes:
    signing = hmac.new(_derived(key, b"sign"), header, "sha256")
    bound = _bound(place)
    signing.update(len(bound).to_bytes(8, "little") + bound)
    signing.update(memory)
    return signing.digest()


def _verified(key: bytes, header: bytes, place: tuple[str | int, ...], body: bytes) -> bytes | None:
    memory, signature = body[:-_SIGNATURE_BYTES], body[-_SIGNATURE_BYTES:]
    return memory if hmac.compare_digest(signature, _signature(key, header, place, memory)) else None


def _decrypted(key: bytes, header: bytes, place: tuple[str | int, ...], body: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag

    try:
        return _cipher(key).decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], header + _bound(place))
    except (InvalidTag, ValueError):
        return None


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise InvalidRequest(
            "encrypted memories need the package 'cryptography': pip install 'hope-server[encryption]'",
            param="encrypt_memories",
        ) from None
    return AESGCM(_derived(key, b"encrypt"))

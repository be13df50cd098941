"""The digest chain of a conversation: by it a client that sends everything again is understood.

One digest stands for everything said up to an assistant's reply. System messages are no part of it: a client may
change them at will. Pure: no store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from engine.core import Said

ASSISTANT, SYSTEM = "assistant", "system"
# What stands for a conversation in which nothing was said.
BEGINNING = ""


def extend(digest: str, said: Iterable[Said]) -> str:
    """The digest of a conversation that went on: 32 hex digits.

    White space around a message does not count: clients trim it.
    """
    for one in said:
        if one.role != SYSTEM:
            text = f"{digest}\x1f{one.role}\x1f{one.text.strip()}"
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return digest


def alone(said: Said) -> str:
    """What stands for a system message by itself."""
    return f"{SYSTEM[0]}:{extend(BEGINNING, [Said(ASSISTANT, said.text)])}"


def marks(messages: Iterable[Said]) -> list[tuple[int, str]]:
    """After each of the assistant's messages: how many messages that makes, and the digest of all of them."""
    found, digest = [], BEGINNING
    for number, said in enumerate(messages, 1):
        digest = extend(digest, [said])
        if said.role == ASSISTANT:
            found.append((number, digest))
    return found

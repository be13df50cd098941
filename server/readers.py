"""How a setting's text becomes its value: functions that raise ValueError saying what the text should have been.

Knows no settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from engine import InvalidRequest, check_store_url


def some_text(text: str) -> str:
    """Any text but none."""
    if not text:
        raise ValueError("may not be empty")
    return text


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A whole number within bounds."""

    def read(text: str) -> int:
        bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"must be a whole number {bounds}") from None
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError(f"must be a whole number {bounds}")
        return value

    return read


def seconds(text: str) -> float:
    """A time above 0."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if not 0 < value < 1e9:
        raise ValueError("must be a number of seconds above 0")
    return value


def amount(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number of at least 0") from None
    if not 0 <= value < 1e9:
        raise ValueError("must be a number of at least 0")
    return value


def switch(text: str) -> bool:
    """True or false, in the words people use."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


def redis_url(text: str) -> str:
    """A URL that the store can be reached by."""
    try:
        check_store_url(text)
    except InvalidRequest as error:
        raise ValueError(error.message) from None
    return text


def folder_url(text: str) -> str:
    """A URL of a folder or an object store."""
    if "://" not in text:
        raise ValueError("must be a URL: file:///a/folder, s3://bucket/folder, ...")
    return text


def log_level(text: str) -> str:
    """One of the four levels."""
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError("must be debug, info, warning or error")
    return text.lower()


def optional(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """None for an empty text."""
    return lambda text: read(text) if text else None


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages, separated by commas: a scheme, a host and a port where it is not the scheme's own."""
    found = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for origin in found:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(f"holds '{origin}', which is no origin: https://app.example.org, without a path or '*'")
    return found

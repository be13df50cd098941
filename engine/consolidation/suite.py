"""What consolidation asks and what it must not spoil: the questions dreams begin with, probes, and a fixed text.

A TOML file each, the bundled one and an operator's own beside it. Knows no model.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.errors import InvalidRequest


@dataclass(frozen=True)
class Probe:
    """A question to a session that was told nothing.

    Attributes:
        ask: the question.
        says: words of which a good reply holds one; empty for any.
        never: words that a good reply does not hold.
    """

    ask: str
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def passed(self, reply: str) -> bool:
        """Whether the reply is a good one."""
        lower = reply.lower()
        said = not self.says or any(word.lower() in lower for word in self.says)
        return said and not any(word.lower() in lower for word in self.never)


@dataclass(frozen=True)
class Suite:
    """Questions and texts.

    Attributes:
        request: what asks the model for a question that could be asked about the turn before.
        nothing: what it says to that where there is none.
        openers: how questions begin that only resemble what was told.
        calm: questions and small talk whose replies should stay as they are.
        text: turns, a message and its reply each, on which perplexity is measured.
        probes: an operator's own.
    """

    request: str
    nothing: str
    openers: tuple[str, ...]
    calm: tuple[str, ...]
    text: tuple[tuple[str, str], ...]
    probes: tuple[Probe, ...]


def load_suite(extra: Path | None = None) -> Suite:
    """The bundled suite, with what an operator's file adds.

    Raises:
        InvalidRequest: the file cannot be read, or holds something else.
    """
    bundled = _parse((files("engine.consolidation") / "suite.toml").read_text("utf-8"), "suite.toml")
    if extra is None:
        return bundled
    try:
        text = extra.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the suite {extra.name} cannot be read", param="suite") from error
    added = _parse(text, extra.name)
    return Suite(
        added.request or bundled.request,
        added.nothing or bundled.nothing,
        bundled.openers + added.openers,
        bundled.calm + added.calm,
        bundled.text + added.text,
        bundled.probes + added.probes,
    )


def _parse(text: str, name: str) -> Suite:
    try:
        table = tomllib.loads(text)
        unknown = set(table) - {"request", "nothing", "openers", "calm", "text", "probe"}
        if unknown:
            raise ValueError(f"it has no '{sorted(unknown)[0]}'")
        return Suite(
            _word(table.get("request", "")),
            _word(table.get("nothing", "")),
            _words(table.get("openers", [])),
            _words(table.get("calm", [])),
            tuple((str(message), str(reply)) for message, reply in table.get("text", [])),
            tuple(_probe(probe) for probe in table.get("probe", [])),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(
            f"the suite {name} is not one: {error}; it holds a `request`, `nothing`, lists `openers`, `calm` and "
            "`text` (pairs) and [[probe]] tables with `ask`, `says`, `never`",
            param="suite",
        ) from error


def _probe(table: dict[str, Any]) -> Probe:
    unknown = set(table) - {"ask", "says", "never"}
    if unknown:
        raise ValueError(f"a probe has no '{sorted(unknown)[0]}'")
    return Probe(str(table["ask"]), _words(table.get("says", [])), _words(table.get("never", [])))


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is expected")
    return value


def _words(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise TypeError("a list of texts is expected")
    return tuple(values)

"""What the tests of this folder share: a tiny checkpoint's replies are noise, so turns are short and ears are open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.core import DEFAULT_TENANT, Turn, TurnCompleted, TurnRequest
from engine.engine import Engine


@dataclass(frozen=True)
class Said:
    """One turn as `ask` ran it."""

    session_id: str
    message: str
    learn: bool
    turn: Turn


@dataclass
class Ears:
    """Stands in for `recall.ask`: real turns, three tokens long; `reply`, where given, is put in their place."""

    reply: str | None = None
    heard: list[Said] = field(default_factory=list)

    async def ask(self, engine: Engine, session_id: str, message: str, *, learn: bool = True) -> Turn:
        """One turn of the engine."""
        request = TurnRequest(message, learn=learn, temperature=0.0, max_tokens=3)
        async for event in engine.turn(DEFAULT_TENANT, session_id, request):
            if isinstance(event, TurnCompleted):
                turn = event.turn if self.reply is None else replace(event.turn, reply=self.reply)
                self.heard.append(Said(session_id, message, learn, event.turn))
                return turn
        raise AssertionError("a turn ends with turn.completed")

    def sessions(self) -> list[list[Said]]:
        """What was heard, session by session."""
        found: dict[str, list[Said]] = {}
        for said in self.heard:
            found.setdefault(said.session_id, []).append(said)
        return list(found.values())

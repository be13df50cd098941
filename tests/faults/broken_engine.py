"""The server, with an engine's thread that a message can break: by ending it, or by never coming back.

Run as `python -m tests.faults.broken_engine serve …`; all else is the program itself.
"""

from __future__ import annotations

import sys
import time

from engine.loop import EngineLoop
from server.cli import main

END, STICK = "End of the thread.", "Stuck in a step."
_step = EngineLoop._step


def _step_or_break(loop: EngineLoop) -> None:
    messages = {turn.request.message for turn in loop._running.values()}
    if END in messages:
        raise SystemExit  # no Exception: as when the interpreter takes the thread down
    if STICK in messages:
        time.sleep(3600)
    _step(loop)


if __name__ == "__main__":
    EngineLoop._step = _step_or_break  # type: ignore[method-assign, assignment]
    sys.exit(main())

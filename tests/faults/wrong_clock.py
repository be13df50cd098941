"""The server on a machine whose clock is off by CLOCK_OFFSET_S seconds: the one place that asks for the time lies.

Run as `python -m tests.faults.wrong_clock serve …`. A faked clock of the whole process would slow it down fiftyfold.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta, tzinfo

from engine.sessions import records
from server.cli import main

OFFSET = timedelta(seconds=float(os.environ.get("CLOCK_OFFSET_S", "0")))


class _Off(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _Off:
        return cls.fromtimestamp((datetime.now(tz) + OFFSET).timestamp(), tz)


if __name__ == "__main__":
    vars(records)["datetime"] = _Off
    sys.exit(main())

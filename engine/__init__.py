"""The mind: a Hope model whose memory is a value, the batched engine around it, and the sessions it remembers.

This is all that the server may import; it knows no web.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from engine.config import EngineSettings, StoreSettings
from engine.core import (
    DEFAULT_TENANT,
    Consolidation,
    GateCheck,
    GenerationView,
    Health,
    LevelReport,
    LevelView,
    MemoryReport,
    MemoryView,
    QuarantineView,
    Said,
    Session,
    SurprisePoint,
    Timing,
    Turn,
    TurnCompleted,
    TurnCreated,
    TurnEvent,
    TurnRequest,
    TurnToken,
    Usage,
    VersionView,
)
from engine.errors import (
    CommitUnknown,
    Conflict,
    CorruptMemory,
    DeadlineExceeded,
    Draining,
    Forbidden,
    HopeError,
    Internal,
    InvalidRequest,
    LeaseLost,
    NotFound,
    OtherModel,
    Overloaded,
    RateLimited,
    StoreUnavailable,
    TooLarge,
    TurnCancelled,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from engine.logprobs import Candidate, SaidToken
from engine.observer import Observer
from engine.sessions.address import read_address as check_store_url

if TYPE_CHECKING:
    from engine.consolidation.worker import run_worker
    from engine.engine import Engine
    from engine.evaluation.bench import run_bench
    from engine.evaluation.command import run_evaluation
    from engine.relearning import Relearned, run_relearning
    from engine.training.command import run_training

__all__ = [
    "DEFAULT_TENANT",
    "Candidate",
    "CommitUnknown",
    "Conflict",
    "Consolidation",
    "CorruptMemory",
    "DeadlineExceeded",
    "Draining",
    "Engine",
    "EngineSettings",
    "Forbidden",
    "GateCheck",
    "GenerationView",
    "Health",
    "HopeError",
    "Internal",
    "InvalidRequest",
    "LeaseLost",
    "LevelReport",
    "LevelView",
    "MemoryReport",
    "MemoryView",
    "NotFound",
    "Observer",
    "OtherModel",
    "Overloaded",
    "QuarantineView",
    "RateLimited",
    "Relearned",
    "Said",
    "SaidToken",
    "Session",
    "StoreSettings",
    "StoreUnavailable",
    "SurprisePoint",
    "Timing",
    "TooLarge",
    "Turn",
    "TurnCancelled",
    "TurnCompleted",
    "TurnCreated",
    "TurnEvent",
    "TurnRequest",
    "TurnToken",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
    "Usage",
    "VersionView",
    "check_store_url",
    "run_bench",
    "run_evaluation",
    "run_relearning",
    "run_training",
    "run_worker",
]

_LAZY = {
    "Engine": ("engine.engine", "Engine"),
    "Relearned": ("engine.relearning", "Relearned"),
    "run_relearning": ("engine.relearning", "run_relearning"),
    "run_worker": ("engine.consolidation.worker", "run_worker"),
    "run_training": ("engine.training.command", "run_training"),
    "run_evaluation": ("engine.evaluation.command", "run_evaluation"),
    "run_bench": ("engine.evaluation.bench", "run_bench"),
}


def __getattr__(name: str) -> object:
    """What needs torch is imported when it is first used, so that `hope --help` answers at once."""
    if name not in _LAZY:
        raise AttributeError(name)
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)

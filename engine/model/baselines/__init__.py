"""Models of other people's design, at equal parameters and behind Hope's interface, to measure Hope against.

Knows no training and no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.model.baselines import gated_deltanet, samba, transformer
from engine.model.baselines.common import Baseline

# Called with vocab_size, width, num_layers, num_heads and, where a size is wanted, num_parameters.
BASELINES: dict[str, Callable[..., Baseline]] = {
    "transformer": transformer.build,
    "transformer-window": transformer.build_window,
    "samba": samba.build,
    "gated-deltanet": gated_deltanet.build,
}

"""Models of other people's design, at equal parameters and behind Hope's interface, to measure Hope against.

Knows no training and no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import InvalidRequest
from engine.model.baselines import gated_deltanet, samba, transformer
from engine.model.baselines.common import Baseline, BaselineConfig

# Called with vocab_size, width, num_layers, num_heads and, where a size is wanted, num_parameters.
BASELINES: dict[str, Callable[..., Baseline]] = {
    "transformer": transformer.build,
    "transformer-window": transformer.build_window,
    "samba": samba.build,
    "gated-deltanet": gated_deltanet.build,
}


def build_baseline(config: BaselineConfig) -> Baseline:
    """A baseline, freshly initialised, that knows what it was built from.

    Raises:
        InvalidRequest: there is no such baseline, or none of this size.
    """
    if config.name not in BASELINES:
        raise InvalidRequest(f"'{config.name}' is none of {', '.join(BASELINES)}", param="model")
    shape = config.vocab_size, config.width, config.num_layers, config.num_heads, config.num_parameters
    model = BASELINES[config.name](*shape)
    model.built_from = config
    return model

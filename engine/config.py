"""Frozen settings of the engine: the model's shape, the levels, the batch, the store, the worker.

Composed here, read once at the edge (`server/settings.py` for the server, `hope train` for training).
Knows no environment variables, no flags and no files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.errors import InvalidRequest, Unsupported

CMS_FAST = "cms.fast"
CMS_MEDIUM = "cms.medium"
CMS_SLOW = "cms.slow"
TITANS, ATTENTION = "titans", "attention"

# How a level steps (`engine/model/continuum.py`); the first is the default.
LEVEL_OPTIMIZERS = ("sgd", "adamw", "delta_momentum", "deep_momentum", "muon", "m3")

# What a memory may project.
ADAPTIVE = ("key", "value", "query", "eta", "alpha")
# Fields that were not there when the first memories and checkpoints were stored, and what held in their place.
BEFORE: dict[str, Any] = {
    "write_rule": "dgd",
    "objective": "l2",
    "largest_step": 1.0,
    "adaptive": ("key", "value", "eta", "alpha"),
    "head_mixing": "none",
    "write_gradient": "full",
    "momentum": False,
    "retention": True,
    "read": "token",
    "chain": "sequential",
    "mixer": "titans",
    "period_tokens": 512,
    "optimizer": "sgd",
}
# What each choice of a model's shape may be.
CHOICES = {
    "decay_towards": ("initial", "zero"),
    "write_rule": ("dgd-layers", "dgd", "gradient"),
    "objective": ("l2", "dot"),
    "head_mixing": ("silu", "linear", "none"),
    "write_gradient": ("full", "first-order"),
    "read": ("token", "boundary"),
    "chain": ("sequential", "nested", "independent"),
    "mixer": (TITANS, ATTENTION),
}


@dataclass(frozen=True)
class LevelConfig:
    """One block of the CMS chain (HOPE.md §1(g)), fast to slow.

    Attributes:
        name: `cms.fast`, `cms.medium`, `cms.slow`, or another `cms.*`.
        hidden: width of the block's hidden layer.
        scope: whose memory the level is: `session`, `tenant`, or `training` (it never learns after training).
        learning_rate: step of one update on the level's difference from its initial state.
        max_update_norm: gradient clip of one update (Frobenius norm over the level).
        max_drift: bound on the level's norm, drawn back to it after an update (law 6).
        period_tokens: the level's clock where it learns inside a text (`engine/model/in_context.py`).
        optimizer: the f of eq. 71, one of `LEVEL_OPTIMIZERS`; all but `sgd` keep a state in the memory.
    """

    name: str
    hidden: int
    scope: str = "session"
    learning_rate: float = 0.0
    max_update_norm: float = 1.0
    max_drift: float = 8.0
    period_tokens: int = 512
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        if re.fullmatch(r"cms\.[a-z0-9_]+", self.name) is None:
            raise InvalidRequest(f"a level is named 'cms.' and a word, not '{self.name}'", param="levels")
        _one_of("scope", self.scope, ("session", "tenant", "training"))
        _one_of("optimizer", self.optimizer, LEVEL_OPTIMIZERS)
        if self.period_tokens < 2:
            # One token has no next one to learn.
            raise InvalidRequest(f"period_tokens {self.period_tokens} of '{self.name}' must be at least 2")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Hope model; part of its fingerprint.

    Attributes:
        vocab_size: entries of the tokenizer.
        width: model width d; must be a multiple of `num_heads`.
        num_layers: number of Hope blocks.
        num_heads: block-diagonal memories per layer; each sees width / num_heads.
        memory_hidden: hidden width h of M_memory, per head.
        projection_hidden: hidden width of M_k, M_v and M_q, per head.
        rate_hidden: hidden width of M_eta and M_alpha, per head.
        chunk_memory: tokens between two updates of M_memory; divides `chunk_projections`.
        chunk_projections: tokens between two updates of the other memories.
        conv_width: taps of the causal depthwise convolutions.
        retention_floor: lowest retention gate alpha.
        decay_towards: `initial` keeps the meta-learned state when memory decays, `zero` is eq. 88 as printed.
        max_drift: bound on the Frobenius norm of each fast weight matrix (law 6).
        levels: the CMS chain, fast to slow; may be empty.
        write_rule: `dgd-layers`, Delta Gradient Descent (eq. 57) of both layers of a memory, each with its own input;
            `dgd` of the first layer alone; or `gradient`, plain gradient descent.
        objective: what a memory learns: `l2`, ||M(k) - v||^2 (eq. 93), or `dot`, -<M(k), v> (eq. 92).
        largest_step: bound of eta, at most 2. Above 1 a write may turn around what lay at its key: such negative
            eigenvalues are what telling odd from even takes (Grazzi et al. 2024, arXiv 2411.12537), and with large
            weights they let rounding grow.
        adaptive: what memories project, out of `key`, `value`, `query`, `eta`, `alpha`; a Linear does the rest.
        head_mixing: what lies before each projecting memory, so that a head sees all of the width and not its own share
            alone (the paper's memories are as wide as the model): `silu`, a Linear and SiLU as in Titans; `linear`, one
            that begins as the identity, so that a model trained without goes on as it was; or `none`.
        write_gradient: how training sees a write that depends on what earlier chunks wrote; it changes nothing of what
            a model computes. `full` follows those weights everywhere; where memories take large steps, such gradients
            grow with the text. `first-order` takes them as given where keys, values and errors are made, and follows
            them where they decay and are read: gradients add up, and less is learned of recall.
        momentum: carry a share of the writes of earlier chunks on to the next.
        retention: False never forgets (alpha = 1; Table 6 "w/o weight decay").
        read: `token` answers from the state after the token's own write, `boundary` from the chunk's start (eq. 90).
        chain: `sequential` (eq. 73), `nested` (eq. 72) or `independent` (eq. 74) CMS levels.
        mixer: `titans`, or `attention` (Hope-Attention; for research, its state grows with the text).
    """

    vocab_size: int = 4096
    width: int = 192
    num_layers: int = 4
    num_heads: int = 3
    memory_hidden: int = 64
    projection_hidden: int = 32
    rate_hidden: int = 8
    chunk_memory: int = 64
    chunk_projections: int = 64
    conv_width: int = 4
    retention_floor: float = 0.8
    decay_towards: str = "initial"
    max_drift: float = 16.0
    levels: tuple[LevelConfig, ...] = field(
        default_factory=lambda: (
            LevelConfig(CMS_FAST, 96, "session", 1.0),
            LevelConfig(CMS_MEDIUM, 96, "session", 0.1),
            LevelConfig(CMS_SLOW, 384, "tenant", 0.0),
        )
    )
    write_rule: str = "dgd-layers"
    objective: str = "l2"
    largest_step: float = 1.0
    adaptive: tuple[str, ...] = ADAPTIVE
    head_mixing: str = "silu"
    write_gradient: str = "full"
    momentum: bool = False
    retention: bool = True
    read: str = "token"
    chain: str = "sequential"
    mixer: str = TITANS

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise InvalidRequest(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.chunk_projections % self.chunk_memory:
            raise InvalidRequest(
                f"chunk_projections {self.chunk_projections} must be a multiple of chunk_memory {self.chunk_memory}"
            )
        for name, allowed in CHOICES.items():
            _one_of(name, getattr(self, name), allowed)
        if not 0 < self.largest_step <= 2:
            raise InvalidRequest(
                f"largest_step {self.largest_step} must be above 0 and at most 2", param="largest_step"
            )
        for name in self.adaptive:
            _one_of("adaptive", name, ADAPTIVE)
        # One order for one model; and JSON knows no tuples.
        object.__setattr__(self, "adaptive", tuple(name for name in ADAPTIVE if name in self.adaptive))
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise InvalidRequest(f"two levels have the same name: {', '.join(names)}", param="levels")
        if self.mixer == ATTENTION and self.head_width % 2:
            raise InvalidRequest(f"attention turns pairs: the head width {self.head_width} must be even", param="mixer")

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    def identity(self) -> dict[str, Any]:
        """What makes one shape differ from another, for its fingerprint.

        A field of `BEFORE` is left out where it says what held before there was such a field: a memory that grew then
        still belongs to its model.
        """
        return _identity(self) | {"levels": [_identity(level) for level in self.levels]}

    def check_servable(self) -> None:
        """Refuses a shape that the serving engine does not hold.

        Raises:
            Unsupported: the state grows with the text, or a turn has no `cms.fast` to teach.
        """
        if self.mixer != TITANS:
            raise Unsupported(
                f"a model with mixer '{self.mixer}' cannot be served: its state grows with the text; "
                f"serve one with mixer '{TITANS}'",
                param="checkpoint",
            )
        if not any(level.name == CMS_FAST and level.scope == "session" for level in self.levels):
            raise Unsupported(f"a model without a session level '{CMS_FAST}' cannot be served", param="checkpoint")


def _identity(config: LevelConfig | ModelConfig) -> dict[str, Any]:
    values = ((one, getattr(config, one.name)) for one in fields(config))
    return {one.name: value for one, value in values if one.name not in BEFORE or value != BEFORE[one.name]}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(f"'{choice}'" for choice in allowed)
        raise InvalidRequest(f"{name} is one of {choices}, not '{value}'", param=name)


@dataclass(frozen=True)
class StoreSettings:
    """Where sessions live and how long their parts are kept.

    Attributes:
        redis_url: of a server, a cluster or Sentinels (`engine/sessions/address.py`); None starts the embedded store.
        data_dir: folder of the embedded store's files.
        lease_ttl_s: seconds a session's lease lives without renewal.
        idempotency_ttl_s: seconds an idempotency record is kept (the contract says 24 h).
        keep_versions: how many of a session's last memory versions are retained.
        keep_days: of so many days, today among them, the last version each is retained too.
        generations_url: folder or object store for the bytes of generations (`file://`, `s3://`, …); None: the store.
        store_key_file: file of keys with which memories are sealed (`engine/sessions/sealing.py`); None seals nothing.
        encrypt_memories: encrypt them; else a seal only signs.
        refuse_unsealed: serve no memory that was stored before there was a key.
    """

    redis_url: str | None = None
    data_dir: Path = Path("data")
    lease_ttl_s: float = 15.0
    idempotency_ttl_s: int = 86_400
    keep_versions: int = 8
    keep_days: int = 7
    generations_url: str | None = None
    store_key_file: Path | None = None
    encrypt_memories: bool = False
    refuse_unsealed: bool = False


@dataclass(frozen=True)
class EngineSettings:
    """How one engine batches, and how much it admits.

    Attributes:
        checkpoint: folder of the checkpoint; None means the one shipped in the package.
        max_batch_rows: sessions that run together in one step.
        max_queue: turns that may wait; the next is refused with `overloaded`.
        max_message_tokens: longest message of one turn.
        max_new_tokens: upper bound of a turn's `max_tokens`.
        resident_bytes: budget of session memories kept in this process (LRU).
        torch_threads: intra-op threads; one is fastest for small tensors on busy machines.
        drain_timeout_s: seconds running turns get to finish when the engine closes.
        heartbeat_timeout_s: heartbeat age after which the engine thread counts as dead.
        turns_per_consolidation: turns after which a session is handed to the worker.
        learn_every_tokens: clock of `cms.fast` inside a long message.
        turns_per_minute: turns a tenant may begin in a minute, on all replicas together; 0 for no limit.
        tokens_per_minute: tokens a tenant's turns may read and speak in a minute; a turn that began is not cut short.
        learned_tokens_per_minute: tokens a tenant's sessions may learn from in a minute.
        learned_tokens_per_session_hour: tokens a session may learn from in an hour; over it, turns are answered without
            learning. 0 for no limit.
        surprise_per_consolidation: nats of surprise, summed over turns, after which a session is handed to the worker;
            0: only turns and quiet count.
        idle_consolidation_s: quiet seconds after which a session is handed to the worker.
        generation_every_s: seconds after a contributing session's turn until its tenant gets a new generation; 0: only
            when asked for.
        suite: an operator's probes and texts for the gate, beside the bundled ones.
    """

    checkpoint: Path | None = None
    max_batch_rows: int = 16
    max_queue: int = 256
    max_message_tokens: int = 8192
    max_new_tokens: int = 1024
    resident_bytes: int = 512 * 2**20
    torch_threads: int = 1
    drain_timeout_s: float = 30.0
    heartbeat_timeout_s: float = 30.0
    turns_per_consolidation: int = 16
    idle_consolidation_s: float = 300.0
    generation_every_s: int = 3600
    suite: Path | None = None
    learn_every_tokens: int = 512
    turns_per_minute: int = 0
    tokens_per_minute: int = 0
    learned_tokens_per_minute: int = 0
    learned_tokens_per_session_hour: int = 0
    surprise_per_consolidation: float = 64.0

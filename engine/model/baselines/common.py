"""What the baselines share: the language model around the mixers, SwiGLU, chunks, and a model of a wanted size.

The interface is Hope's (`engine/model/hope.py`): memory is a value, batch first; no module holds session state.
Linear layers start as PyTorch's do, as Hope's. Knows no mixer by name.

Shapes: B rows, T tokens, D width, V vocabulary, H heads, N chunks, C tokens of a chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.model.hope import POSITION, Memory
from engine.model.layers import RMSNorm

State = dict[str, Tensor]
TOLERANCE = 0.01


@dataclass(frozen=True)
class Reading:
    """What every mixer must know of one call.

    Attributes:
        position_B: absolute position of every row before the call.
        lengths_B: real tokens of every row, or None where no row is padded.
        num_tokens: tokens T of the call, padding included.
        reach_before, reach_after: the furthest position of any row before and after the call.
        aligned: whether all rows stand at the same position before the call.
    """

    position_B: Tensor
    lengths_B: Tensor | None
    num_tokens: int
    reach_before: int
    reach_after: int
    aligned: bool

    @staticmethod
    def of(position_B: Tensor, lengths_B: Tensor | None, num_tokens: int) -> Reading:
        """The reading of `num_tokens` tokens a row from `position_B` on."""
        before = [int(p) for p in position_B.tolist()]
        lengths = [num_tokens] * len(before) if lengths_B is None else [int(n) for n in lengths_B.tolist()]
        after = max((p + n for p, n in zip(before, lengths, strict=True)), default=0)
        return Reading(position_B, lengths_B, num_tokens, max(before, default=0), after, len(set(before)) <= 1)

    def real(self) -> Tensor | None:
        """Which tokens are no padding [B,T]; None where none is."""
        if self.lengths_B is None:
            return None
        return torch.arange(self.num_tokens, device=self.lengths_B.device) < self.lengths_B.unsqueeze(1)


class Mixer(nn.Module, ABC):
    """The half of a layer in which tokens see one another.

    Attributes:
        name: the first part of its tensors' names in a memory.
        parts: the tensors of its state.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def initial_state(self, num_rows: int) -> State:
        """State of `num_rows` rows that have read nothing."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: State, reading: Reading) -> tuple[Tensor, State]:
        """What is added to the residual stream for its normed self [B,T,D], and the state afterwards."""


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x), without bias (Shazeer 2020; Llama)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down(functional.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return out


class Layer(nn.Module):
    """A mixer and a SwiGLU, each behind an RMSNorm and inside a residual connection."""

    def __init__(self, width: int, hidden: int, mixer: Mixer) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(width)
        self.mixer = mixer
        self.feed_norm = RMSNorm(width)
        self.feed = SwiGLU(width, hidden)

    def forward(self, x_BTD: Tensor, state: State, reading: Reading) -> tuple[Tensor, State]:
        """The residual stream [B,T,D] and the mixer's state after the layer."""
        added, state = self.mixer(self.mixer_norm(x_BTD), state, reading)
        x_BTD = x_BTD + added
        return x_BTD + self.feed(self.feed_norm(x_BTD)), state


@dataclass(frozen=True)
class BaselineConfig:
    """What a baseline is built from, and built again from when its checkpoint is read.

    Attributes:
        name: one of `BASELINES` (`baselines/__init__.py`).
        vocab_size, width, num_layers, num_heads: as of a Hope.
        num_parameters: wanted size, met within 1 %.
    """

    name: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_parameters: int


class Baseline(nn.Module):
    """A language model of layers around the given mixers, with a tied embedding.

    Attributes:
        built_from: what `build_baseline` was given; None for one built by hand, which has no checkpoint.
    """

    built_from: BaselineConfig | None = None

    def __init__(self, vocab_size: int, width: int, hidden: int, mixers: Sequence[Mixer]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(width, hidden, mixer) for mixer in mixers)
        self.norm = RMSNorm(width)

    def initial_memory(self, batch_size: int, levels: bool = True) -> Memory:
        """Memory of rows that have read nothing; `levels` is Hope's and changes nothing here."""
        device = self.embedding.weight.device
        memory: Memory = {POSITION: torch.zeros(batch_size, dtype=torch.int64, device=device)}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            for part, value in layer.mixer.initial_state(batch_size).items():
                memory[f"{layer.mixer.name}.{index}.{part}"] = value
        return memory

    def forward(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        """Reads tokens.

        Args:
            tokens_BT: token ids; rows may be padded at the end.
            memory: the rows' memory; it is not changed.
            lengths_B: real tokens of every row (0 to T), or None where no row is padded.

        Returns:
            Logits [B,T,V] (those of padded places mean nothing) and the memory after the last real token.
        """
        x_BTD, after = self.hidden(tokens_BT, memory, lengths_B)
        return self.logits(x_BTD), after

    def hidden(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        """As `forward`, before the unembedding: normed residual stream [B,T,D]."""
        reading = Reading.of(memory[POSITION], lengths_B, tokens_BT.shape[1])
        after = dict(memory)
        x_BTD = self.embedding(tokens_BT)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            prefix = f"{layer.mixer.name}.{index}."
            x_BTD, state = layer(x_BTD, {part: memory[prefix + part] for part in layer.mixer.parts}, reading)
            after.update({prefix + part: value for part, value in state.items()})
        after[POSITION] = memory[POSITION] + (tokens_BT.shape[1] if lengths_B is None else lengths_B)
        return self.norm(x_BTD), after

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Next-token logits of a residual stream, with the tied embedding."""
        return functional.linear(x_BTD, self.embedding.weight)


def usual_hidden(width: int) -> int:
    """Hidden size of a SwiGLU as Llama chooses it: 8/3 of the width, here to the next multiple of 8."""
    return -(-8 * width // 24) * 8


def fit_hidden(make: Callable[[int], nn.Module], num_parameters: int) -> int:
    """The hidden size with which `make(hidden)` comes nearest to `num_parameters`; a larger one has more of them.

    Modules are made on the meta device: nothing is allocated.

    Raises:
        InvalidRequest: the nearest is more than 1 % off.
    """

    def count(hidden: int) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in make(hidden).parameters())

    low, high = 1, 2
    while count(high) < num_parameters:
        if count(high) <= count(low):
            raise InvalidRequest("the hidden size does not change the number of parameters", param="num_parameters")
        low, high = high, 2 * high
    # From here on `high` is enough, and `low` is not, unless it is 1.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < num_parameters else (low, middle)
    best = min((low, high), key=lambda hidden: abs(count(hidden) - num_parameters))
    found = count(best)
    if abs(found - num_parameters) > TOLERANCE * num_parameters:
        raise InvalidRequest(
            f"no hidden size gives {num_parameters} parameters: the nearest model has {found}; "
            "change the width or the number of layers",
            param="num_parameters",
        )
    return best


def require_multiple(width: int, num_heads: int, even: bool = False) -> None:
    """Raises InvalidRequest unless heads of equal (and, where asked for, even) width share the width out."""
    if num_heads < 1 or width % num_heads:
        raise InvalidRequest(f"width {width} must be a multiple of num_heads {num_heads}")
    if even and width // num_heads % 2:
        raise InvalidRequest(f"RoPE turns pairs: the head width {width // num_heads} must be even")


def in_chunks(x: Tensor, axis: int, size: int) -> Tensor:
    """`x` with its token axis cut into [N,C]; the last chunk is filled up with zeros."""
    axis %= x.ndim
    missing = -x.shape[axis] % size
    if missing:
        x = functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, missing])
    return torch.unflatten(x, axis, (-1, size))


def decay_within(sums: Tensor) -> Tensor:
    """exp of the log decay between two tokens of a chunk, the later one's row [..., C, C]; zero where it is earlier.

    `sums` [..., C] are the cumulated log decays ("segment sum", Mamba-2, listing 1).
    """
    between = sums.unsqueeze(-1) - sums.unsqueeze(-2)
    later = torch.ones(between.shape[-2:], dtype=torch.bool, device=sums.device).triu(1)
    return between.masked_fill(later, -torch.inf).exp()


def spread_time_steps(num_heads: int) -> tuple[Tensor, Tensor]:
    """(A_log, dt_bias) [H] as Mamba-2 starts them: A in 1 to 16 and softplus(dt_bias) in 0.001 to 0.1, log-uniform.

    Not drawn but spread evenly over the heads: with a few heads, a draw could leave all of them short-sighted.
    """
    place = (torch.arange(num_heads) + 0.5) / num_heads
    step = 0.001 * 100**place
    return torch.log(1 + 15 * place), step + torch.log(-torch.expm1(-step))

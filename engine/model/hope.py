"""Hope (HOPE.md §1(h), eq. 94 to 97): self-modifying Titans followed by the CMS chain, block after block.
Hope-Attention has attention in the place of Titans.

`forward(tokens, memory) -> (logits, memory)`: memory is a value, batch first; the module holds no session state.
Knows nothing of turns, sessions or sampling.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import ATTENTION, CMS_MEDIUM, LevelConfig, ModelConfig
from engine.model.attention import CausalAttention
from engine.model.continuum import ContinuumBlock, Difference, initial_step_state, mix
from engine.model.grid import Piece, cut
from engine.model.layers import RMSNorm
from engine.model.self_modifying import SelfModifyingTitans

Memory = dict[str, Tensor]
POSITION = "position"
# What the worker goes through again when it teaches a session's `cms.medium` something new: so many token rows of so
# many tokens, each after the place at which its reply begins. Part of the memory, but no pass reads it.
MOST_REHEARSED, REHEARSED_TOKENS = 96, 40


def rehearsal_name(level_name: str) -> str:
    """The name of a level's rehearsal in a memory."""
    return f"{level_name}.rehearsal"


class HopeBlock(nn.Module):
    """One layer: Titans (or attention) and the CMS chain, each inside a residual connection (HOPE.md §3, 10)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.mixer == ATTENTION:
            self.attention = CausalAttention(config)
        else:
            self.titans = SelfModifyingTitans(config)
        self.levels = nn.ModuleList(ContinuumBlock(config.width, level) for level in config.levels)
        side_by_side = config.chain == "independent" and config.levels
        self.scores = nn.Parameter(torch.zeros(len(config.levels))) if side_by_side else None

    def chain(self, x_BTD: Tensor, differences: list[Difference]) -> Tensor:
        """The CMS levels one after another, or side by side, each with what its row has learned [B,T,D]."""
        if self.scores is not None:
            levels = [level for level in self.levels if isinstance(level, ContinuumBlock)]
            return mix(x_BTD, levels, differences, self.scores)
        for level, difference in zip(self.levels, differences, strict=True):
            x_BTD = level(x_BTD, difference)
        return x_BTD


class Hope(nn.Module):
    """A language model whose memory changes as it reads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(HopeBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width)

    def initial_memory(self, batch_size: int, levels: bool = True) -> Memory:
        """Memory of rows that have read nothing.

        Args:
            batch_size: rows B.
            levels: also give the session levels of the CMS their (zero) differences, so that they can learn.
        """
        weight = self.embedding.weight
        memory: Memory = {POSITION: torch.zeros(batch_size, dtype=torch.int64, device=weight.device)}
        for index, block in enumerate(self.blocks):
            assert isinstance(block, HopeBlock)
            mixer = block.attention if self.config.mixer == ATTENTION else block.titans
            for name, value in mixer.initial_state(batch_size).items():
                memory[f"{self.config.mixer}.{index}.{name}"] = value
        if not levels:
            return memory
        for level in self.config.levels:
            if level.scope == "session":
                memory |= self.initial_level(level, batch_size)
        return memory

    def initial_level(self, level: LevelConfig, batch_size: int) -> Memory:
        """What rows that have learned nothing hold of one CMS level: zero differences, and its optimizer's start."""
        weight = self.embedding.weight
        memory: Memory = {f"{level.name}.updates": torch.zeros(batch_size, dtype=torch.int64, device=weight.device)}
        if level.name == CMS_MEDIUM:
            memory[rehearsal_name(level.name)] = weight.new_zeros(
                (batch_size, MOST_REHEARSED, 1 + REHEARSED_TOKENS), dtype=torch.int32
            )
        for index in range(self.config.num_layers):
            shape = (batch_size, level.hidden, self.config.width)
            memory[f"{level.name}.{index}.w2"] = weight.new_zeros(shape)
            memory[f"{level.name}.{index}.w1"] = weight.new_zeros(shape[0], shape[2], shape[1])
            for part in ("w2", "w1"):
                name = f"{level.name}.{index}.{part}"
                memory |= initial_step_state(level, name, memory[name])
        return memory

    def forward(self, tokens_BT: Tensor, memory: Memory, lengths_B: Tensor | None = None) -> tuple[Tensor, Memory]:
        """Reads tokens, learning as they pass.

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
        config = self.config
        pieces = cut(memory[POSITION], lengths_B, tokens_BT.shape[1], config.chunk_memory, config.chunk_projections)
        after = dict(memory)
        x_BTD = self.embedding(tokens_BT) * config.width**0.5
        for index, block in enumerate(self.blocks):
            assert isinstance(block, HopeBlock)
            x_BTD = self._block(x_BTD, block, index, after, pieces, lengths_B)
        read = tokens_BT.shape[1] if lengths_B is None else lengths_B
        after[POSITION] = memory[POSITION] + read
        return self.norm(x_BTD), after

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Next-token logits of a residual stream, with the tied embedding."""
        return functional.linear(x_BTD, self.embedding.weight)

    def _block(
        self,
        x_BTD: Tensor,
        block: HopeBlock,
        index: int,
        memory: Memory,
        pieces: list[Piece],
        lengths_B: Tensor | None,
    ) -> Tensor:
        prefix = f"{self.config.mixer}.{index}."
        if self.config.mixer == ATTENTION:
            state = {name: memory[prefix + name] for name in block.attention.state_names}
            added, state = block.attention(x_BTD, state, memory[POSITION], lengths_B)
        else:
            state = {name: memory[prefix + name] for name in block.titans.state_names}
            added, state = block.titans(x_BTD, state, pieces, lengths_B)
        memory.update({prefix + name: value for name, value in state.items()})
        return block.chain(x_BTD + added, [_difference(memory, level, index) for level in self.config.levels])


def _difference(memory: Memory, level: LevelConfig, index: int) -> Difference:
    """What the rows have learned in a layer's level; None where the memory does not hold that level."""
    w2 = memory.get(f"{level.name}.{index}.w2")
    return None if w2 is None else (w2, memory[f"{level.name}.{index}.w1"])

"""The plain layers around the memories: RMSNorm, rotary positions, and causal depthwise convolutions with their tail.

Knows neither memories nor levels.

Shapes: B rows, T tokens, D width, H heads, K head width, W taps, F filters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis with a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # By hand: at one token a row, the library's composite costs three times as much.
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.gain


def unit(x: Tensor) -> Tensor:
    """`x` at length 1 over the last axis; what is next to nothing stays so."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def rotate(x_BHTK: Tensor, place_BT: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions (Su et al. 2021): pairs (i, i + K/2) turned by the token's place; K is even."""
    half = x_BHTK.shape[-1] // 2
    # float32 would lose the angle of a token far into a text.
    speed = base ** (-torch.arange(half, device=x_BHTK.device, dtype=torch.float64) / half)
    angle_B1TK = (place_BT.double().unsqueeze(-1) * speed).unsqueeze(1)
    first, second = x_BHTK[..., :half], x_BHTK[..., half:]
    cos, sin = angle_B1TK.cos().to(x_BHTK.dtype), angle_B1TK.sin().to(x_BHTK.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class CausalFilters(nn.Module):
    """F causal depthwise convolutions over one input (window W = 4 in the paper, §8.3).

    They share the input and so one tail of W - 1 rows is all the state there is.
    """

    def __init__(self, width: int, num_filters: int, taps: int) -> None:
        super().__init__()
        self.num_filters, self.taps = num_filters, taps
        weight = torch.randn(taps, num_filters, 1, 1, width) * 0.2
        weight[-1] += 0.6
        self.weight_WF11D = nn.Parameter(weight)

    def forward(self, x_BTD: Tensor, tail_BWD: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Filtered input [F,B,T,D] and the tail that the next call starts from."""
        window = torch.cat([tail_BWD, x_BTD], 1)
        num_tokens, reach = x_BTD.shape[1], self.taps - 1
        out = self.weight_WF11D[reach] * x_BTD
        for tap in range(reach):
            out = torch.addcmul(out, self.weight_WF11D[tap], window[:, tap : tap + num_tokens].unsqueeze(0))
        if lengths_B is None:
            return out, window[:, num_tokens:]
        index = lengths_B.unsqueeze(1) + torch.arange(reach, device=x_BTD.device)
        return out, window.gather(1, index.unsqueeze(-1).expand(-1, -1, window.shape[2]))

"""Plain attention: every token attends every token its mask allows (AR-SSL4M's)."""

import torch
from torch import Tensor, nn

from digar.networks.attention.branch import TokenLayout
from digar.networks.attention.core import attend, prefix_causal_bias


class FullAttention(nn.Module):
    """Attention of all positions to all positions; S^2 scores per head. See :class:`Branch`."""

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__()
        self.num_tokens = layout.num_tokens
        self.num_scores = layout.num_tokens**2

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[Tensor]:
        """The mask of each sample as one additive bias ``(B, 1, S, S)``."""
        position = torch.arange(self.num_tokens, device=prefix.device)[None]
        return [prefix_causal_bias(position, position, prefix, penalty, dtype)]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, biases: list[Tensor]) -> Tensor:
        return attend(query, key, value, biases[0] if len(biases) > 0 else None)

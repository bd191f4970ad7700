"""Dilation along the sequence (AR-SSL4M-DEMO's dilated branch): every r-th position attends every r-th position."""

import torch
from torch import Tensor, nn

from digar.networks.attention.branch import TokenLayout
from digar.networks.attention.core import attend, prefix_causal_bias


class SequenceAttention(nn.Module):
    """Attention among the positions 0, r, 2r, ... of the whole sequence; (S / r)^2 scores per head.

    The result stands at those positions and is zero elsewhere. See :class:`Branch`.

    Raises:
        ValueError: the dilation differs between axes, is below 1 or leaves a single position.
    """

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__()
        step, num_tokens = layout.dilation[0], layout.num_tokens
        if len(set(layout.dilation)) > 1:
            raise ValueError(f"sequence attention has one dilation, not one per axis: {layout.dilation}")
        if not 1 <= step < num_tokens:
            raise ValueError(f"sequence dilation {step} must be from 1 to {num_tokens - 1} for {num_tokens} tokens")
        self.step = step
        self.num_tokens = num_tokens
        self.num_scores = (-(-num_tokens // step)) ** 2

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[Tensor]:
        """The mask among the kept positions as one additive bias."""
        position = torch.arange(0, self.num_tokens, self.step, device=prefix.device)[None]
        return [prefix_causal_bias(position, position, prefix, penalty, dtype)]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, biases: list[Tensor]) -> Tensor:
        step, bias = self.step, biases[0] if len(biases) > 0 else None
        result = torch.zeros_like(query)
        result[:, :, ::step] = attend(query[:, :, ::step], key[:, :, ::step], value[:, :, ::step], bias)
        return result

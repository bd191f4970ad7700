"""Dilation along the sequence (the brief's dilated branch): every r-th position attends every r-th position."""

import torch
from torch import Tensor, nn

from digar.networks.attention.core import attend, prefix_causal_bias


class SequenceAttention(nn.Module):
    """Attention among the positions 0, r, 2r, ... of the whole sequence; (S / r)^2 scores per head.

    The result stands at those positions and is zero elsewhere.

    Args:
        num_tokens: sequence length S, start and end tokens included.
        dilation: r, the step between attending positions.

    Shapes: query, key, value and the result are ``(B, heads, S, d)``.

    Raises:
        ValueError: ``dilation`` is below 1 or leaves a single position.
    """

    def __init__(self, num_tokens: int, dilation: int) -> None:
        super().__init__()
        if not 1 <= dilation < num_tokens:
            raise ValueError(f"sequence dilation {dilation} must be from 1 to {num_tokens - 1} for {num_tokens} tokens")
        self.num_tokens = num_tokens
        self.dilation = dilation
        self.num_scores = (-(-num_tokens // dilation)) ** 2

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[Tensor]:
        """The mask among the kept positions as one additive bias; ``prefix`` is ``(B,)``."""
        position = torch.arange(0, self.num_tokens, self.dilation, device=prefix.device)[None]
        return [prefix_causal_bias(position, position, prefix, penalty, dtype)]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, biases: list[Tensor]) -> Tensor:
        step = self.dilation
        kept = attend(
            query[:, :, ::step], key[:, :, ::step], value[:, :, ::step], biases[0] if len(biases) > 0 else None
        )
        result = torch.zeros_like(query)
        result[:, :, ::step] = kept
        return result

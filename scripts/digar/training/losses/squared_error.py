"""Mean square error of every patch, with one large array instead of five: pixels are the largest tensor of a step."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class PatchError(torch.autograd.Function):
    """Mean square error of the first N positions of a prediction.

    ``PatchError.apply(prediction, pixels)``: prediction ``(B, N or more, pixels)`` of any floating type, pixels
    ``(B, N, pixels)`` in float32 and without a gradient; the result is ``(B, N)`` in float32. Only the difference is
    kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, pixels: Tensor) -> Tensor:
        difference = prediction[:, : pixels.shape[1]] - pixels  # (B, N, pixels), float32
        ctx.save_for_backward(difference)
        ctx.shape, ctx.dtype = prediction.shape, prediction.dtype
        return torch.linalg.vector_norm(difference, dim=-1).square() / pixels.shape[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        num_patches, pixels = difference.shape[1:]
        result = torch.empty(ctx.shape, dtype=ctx.dtype, device=difference.device)
        torch.mul(difference, gradient[..., None] * (2 / pixels), out=result[:, :num_patches])
        result[:, num_patches:] = 0
        return result, None

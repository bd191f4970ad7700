"""The next-patch objective of AR-SSL4M."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scripts.networks.patches import to_patches


def next_patch_target(image: Tensor, patch_size: Sequence[int], norm_pixel: bool = True) -> Tensor:
    """Pixels to be predicted at positions 0..N-1: patches 1..N, ``(B, N, C*p*q*r)``, float32.

    Args:
        image: ``(B, C, X, Y, Z)``.
        patch_size: patch in voxels.
        norm_pixel: normalise each patch to mean 0 and (unbiased) variance 1, with 1e-6 added to the variance.
    """
    patches = to_patches(image.float(), patch_size)
    if not norm_pixel:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def count_predicted(num_patches: int, prefix: Tensor) -> Tensor:
    """Patches that stand after the prefix, over the batch: what the loss averages over."""
    return (num_patches - prefix).sum()


class NextPatchLoss(nn.Module):
    """Mean square error over all patches after the prefix, pooled over the batch.

    With several processes it is pooled over the global batch: each process' sum is divided by the global count (and
    multiplied by the number of processes, by which DDP divides the gradients), so that n processes compute what one
    does.

    Args:
        patch_size: patch in voxels.
        norm_pixel: see :func:`next_patch_target`.
    """

    def __init__(self, patch_size: Sequence[int], norm_pixel: bool = True) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.norm_pixel = norm_pixel

    def forward(self, prediction: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """Loss, a scalar.

        Args:
            prediction: ``(B, N + 2, C*p*q*r)``; position i predicts the patch at position i + 1.
            target: the image ``(B, C, X, Y, Z)`` and the prefix lengths ``(B,)``, each from 0 to N - 1.
        """
        image, prefix = target
        pixels = next_patch_target(image, self.patch_size, self.norm_pixel)
        num_patches = pixels.shape[1]
        error = (prediction[:, :num_patches].float() - pixels).square().mean(dim=-1)  # (B, N)
        position = torch.arange(num_patches, device=prefix.device)
        predicted = position >= prefix[:, None]  # (B, N)
        count = count_predicted(num_patches, prefix).to(error.dtype)
        processes = 1
        if dist.is_available() and dist.is_initialized():
            processes = dist.get_world_size()
            dist.all_reduce(count)
        return (error * predicted).sum() * processes / count

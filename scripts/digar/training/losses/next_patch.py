"""The next-patch objective of AR-SSL4M."""

import math
from collections.abc import Sequence

import ignite.distributed as idist
import torch
from ignite.metrics import Loss
from torch import Tensor, nn

from digar.networks.patches import parts_in_turn, to_patches, token_permutation
from digar.training.losses.squared_error import PatchError


def next_patch_target(
    image: Tensor, patch_size: Sequence[int], norm_pixel: bool = True, token_order: str = "raster"
) -> Tensor:
    """Pixels to be predicted at positions 0..N-1: patches 1..N in token order, ``(B, N, C*p*q*r)``, float32.

    Args:
        image: ``(B, C, X, Y, Z)``.
        patch_size: patch in voxels.
        norm_pixel: normalise each patch to mean 0 and (unbiased) variance 1, with 1e-6 added to the variance.
        token_order: the network's, see :class:`digar.networks.Backbone`.
    """
    patches = to_patches(image.float(), list(patch_size))
    if token_order != "raster":
        patches = patches[:, patch_order(image.shape[2:], patch_size, token_order).to(image.device)]
    if not norm_pixel:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean).mul_((variance + 1e-6).rsqrt())


def patch_order(image_size: Sequence[int], patch_size: Sequence[int], token_order: str) -> Tensor:
    """The raster number of each patch in token order, ``(N,)``."""
    grid = tuple(n // p for n, p in zip(image_size, patch_size, strict=True))
    return token_permutation(grid, parts_in_turn(token_order, grid))


def count_predicted(num_patches: int, prefix: Tensor) -> Tensor:
    """Patches that stand after the prefix, over the batch: what the loss averages over."""
    return (num_patches - prefix).sum()


class NextPatchLoss(nn.Module):
    """Mean square error over all patches after the prefix, pooled over the batch.

    With several processes it is pooled over the global batch: each process' sum is divided by the global count (and
    multiplied by the number of processes, by which DDP divides the gradients), so that n processes compute what one
    does.

    After each call ``patch_error`` holds the batch's mean square error of every patch, ``(B, N)``, 0 inside the prefix.

    Args:
        patch_size: patch in voxels.
        norm_pixel, token_order: see :func:`next_patch_target`.
    """

    def __init__(self, patch_size: Sequence[int], norm_pixel: bool = True, token_order: str = "raster") -> None:
        super().__init__()
        self.patch_size = list(patch_size)
        self.norm_pixel = norm_pixel
        self.token_order = token_order
        self.patch_error = torch.empty(0)

    def forward(self, prediction: Tensor, target: tuple[Tensor, ...]) -> Tensor:
        """Loss, a scalar.

        Args:
            prediction: ``(B, N + 2, C*p*q*r)``; position i predicts the patch at position i + 1.
            target: the image ``(B, C, X, Y, Z)`` and the prefix lengths ``(B,)``, each from 0 to N - 1; what follows
                them is not read.
        """
        error, count = self.error_and_count(prediction, target)
        return error * idist.get_world_size() / idist.all_reduce(count)

    def local(self, prediction: Tensor, target: tuple[Tensor, ...]) -> Tensor:
        """The loss of this process' batch alone."""
        error, count = self.error_and_count(prediction, target)
        return error / count

    def error_and_count(self, prediction: Tensor, target: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Sum over the predicted patches of their mean square error, and their number."""
        image, prefix = target[:2]
        pixels = next_patch_target(image, self.patch_size, self.norm_pixel, self.token_order)
        num_patches = pixels.shape[1]
        error = PatchError.apply(prediction, pixels)  # (B, N)
        predicted = torch.arange(num_patches, device=prefix.device) >= prefix[:, None]  # (B, N)
        error = error * predicted
        self.patch_error = error.detach()
        return error.sum(), count_predicted(num_patches, prefix).to(error.dtype)


def pooled_loss_metric(loss_function: NextPatchLoss) -> Loss:
    """The objective over a whole pass: an ignite metric that weights each batch by the patches it predicts.

    Its engine's output holds ``pred`` and, under ``label``, the loss's target, which begins with image and prefix.
    """

    def predicted_patches(target: tuple[Tensor, ...]) -> int:
        image, prefix = target[:2]
        num_patches = math.prod(n // p for n, p in zip(image.shape[2:], loss_function.patch_size, strict=True))
        return int(count_predicted(num_patches, prefix))

    return Loss(
        loss_function.local,
        output_transform=lambda output: (output["pred"], output["label"]),
        batch_size=predicted_patches,
    )

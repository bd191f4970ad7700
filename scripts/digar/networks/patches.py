"""Volumes as sequences of patches: cutting, and putting back together."""

from collections.abc import Sequence

import torch
from torch import Tensor

TOKEN_ORDERS = {"raster": 1, "volume": 4}  # and the parts along z that come one after another in it


def parts_in_turn(token_order: str, grid_size: Sequence[int]) -> int:
    """How many parts along z come one after another in a token order.

    Raises:
        ValueError: the order is unknown, or the patch grid ``(t, h, w)`` cannot be divided into its parts.
    """
    if token_order not in TOKEN_ORDERS:
        raise ValueError(f"token_order must be {' or '.join(TOKEN_ORDERS)}, not {token_order!r}")
    parts = TOKEN_ORDERS[token_order]
    if grid_size[2] % parts:
        raise ValueError(f"token_order {token_order} divides z into {parts} parts; the patch grid is {grid_size}")
    return parts


def token_permutation(grid_size: Sequence[int], parts: int) -> Tensor:
    """The raster number of each patch in token order: part after part along z, raster within each; ``(t*h*w,)``."""
    t, h, w = grid_size
    return torch.arange(t * h * w).reshape(t, h, parts, w // parts).permute(2, 0, 1, 3).flatten()


def to_patches(image: Tensor, patch_size: list[int]) -> Tensor:
    """Cut ``(B, C, X, Y, Z)`` into ``(B, N, C*p*q*r)``: patches in raster order, last axis fastest.

    Raises:
        ValueError: a volume axis is not a multiple of the patch.
    """
    batch, channels, x, y, z = image.shape
    p, q, r = patch_size
    if x % p != 0 or y % q != 0 or z % r != 0:
        raise ValueError(f"image size {(x, y, z)} is not divisible by patch_size {(p, q, r)}")
    cut = image.reshape(batch, channels, x // p, p, y // q, q, z // r, r)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels * p * q * r)


def from_patches(patches: Tensor, image_size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_patches`: ``(B, N, C*p*q*r)`` to ``(B, C, X, Y, Z)``."""
    p, q, r = patch_size
    t, h, w = (n // s for n, s in zip(image_size, patch_size, strict=True))
    channels = patches.shape[-1] // (p * q * r)
    cut = patches.reshape(-1, t, h, w, channels, p, q, r)
    return cut.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(-1, channels, *image_size)

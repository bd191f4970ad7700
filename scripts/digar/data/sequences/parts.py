"""Samples as their scans store them: their parts side by side in one array, resized and scaled where they are used."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import list_data_collate

from digar.data.sequences.crops import NUM_PARTS, resized
from digar.volumes.intensities import scale_by_percentiles


def join_parts(parts: Sequence[torch.Tensor], size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """One array for parts along z, each in the corner of its share, and the extents that they have of it.

    Args:
        parts: ``(C, X, Y, Z)`` each, none larger than its share of the size; of any types.
        size: of the sample.

    Returns:
        ``(C, *size)`` of the smallest type that holds all, and ``(4, 3)`` whole numbers, 0 below the last part.
    """
    x, y, z = size
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    joined = torch.zeros(len(parts[0]), x, y, z, dtype=dtype)
    extents = torch.zeros(NUM_PARTS, 3, dtype=torch.int64)
    for number, (part, share) in enumerate(zip(parts, joined.chunk(len(parts), dim=3), strict=True)):
        i, j, k = part.shape[1:]
        share[:, :i, :j, :k] = part
        extents[number] = torch.tensor([i, j, k])
    return joined, extents


def join_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch whose images have the smallest type that holds all of theirs; PyTorch's own would take the first's."""
    dtype = functools.reduce(torch.promote_types, (sample["image"].dtype for sample in samples))
    return list_data_collate([{**sample, "image": sample["image"].to(dtype)} for sample in samples])


def scale_samples(images: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
    """Samples ``(B, C, X, Y, Z)`` as float32 from 0 to 1, on the images' device.

    Each part along z is resized to its share, and each of its channels scaled by its own 1 and 99.9 percentiles.

    Args:
        images: as stored.
        extents: of their parts in voxels, ``(B, 4, 3)``, see :func:`join_parts`; all 0 where it is scaled already.
    """
    scaled = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for image, parts, result in zip(images, extents.tolist(), scaled, strict=True):
        sizes = [size for size in parts if any(size)]
        if not sizes:
            result.copy_(image)
            continue
        shares = zip(image.chunk(len(sizes), dim=3), result.chunk(len(sizes), dim=3), strict=True)
        for (x, y, z), (share, target) in zip(sizes, shares, strict=True):
            target.copy_(scale_by_percentiles(resized(share[:, :x, :y, :z], target.shape[1:])))
    return scaled

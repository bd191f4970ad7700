"""Samples for next-patch pretraining, cut from a scan on the fly (DESIGN: spatial sequences; AR-SSL4M section 3)."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Resize, ScaleIntensityRangePercentiles

NUM_SLABS = 4  # a published sample joins four slabs along z


class SpatialSequenced(MapTransform, Randomizable):
    """A random crop of one scan, each channel scaled by its own 1 and 99.9 percentiles to 0..1.

    An axis shorter than the sample is taken whole and resized. With ``slab_offset`` the sample is built as published:
    four slabs of a quarter of its slices, at s, s + offset, s + 2 offset and s + 3 offset of the crop, joined along z
    (neighbouring slabs overlap, so part of the targets can be copied from earlier tokens); without it, it is the crop.

    Args:
        keys: the scan, ``(C, X, Y, Z)``.
        sample_size: the sample in voxels.
        slab_offset: slices between the starts of neighbouring slabs; None for a contiguous crop.

    Raises:
        ValueError: slabs do not fit into the sample's slices.
    """

    def __init__(self, keys: KeysCollection, sample_size: Sequence[int], slab_offset: int | None = None) -> None:
        super().__init__(keys)
        self.sample_size = tuple(sample_size)
        self.slab_offset = slab_offset
        slices = self.sample_size[2]
        thickness, rest = divmod(slices, NUM_SLABS)
        if slab_offset is not None and (rest or slab_offset < 0 or thickness + 3 * slab_offset > slices):
            raise ValueError(
                f"slab_offset {slab_offset} does not fit: {NUM_SLABS} slabs of {slices / NUM_SLABS:g} slices must "
                f"lie within {slices} slices"
            )
        self.scale = ScaleIntensityRangePercentiles(
            lower=1, upper=99.9, b_min=0.0, b_max=1.0, clip=True, channel_wise=True
        )
        self.resize = Resize(self.sample_size, mode="trilinear")

    def crop(self, scan: torch.Tensor) -> torch.Tensor:
        """``(C, X, Y, Z)`` to a random crop ``(C, *sample_size)``."""
        window = [slice(None)]
        for length, size in zip(scan.shape[1:], self.sample_size, strict=True):
            start = self.R.randint(length - size + 1) if length > size else 0
            window.append(slice(start, start + size))
        cropped = scan[tuple(window)]
        return cropped if tuple(cropped.shape[1:]) == self.sample_size else self.resize(cropped)

    def join_slabs(self, crop: torch.Tensor) -> torch.Tensor:
        """Four overlapping slabs of the crop, joined along z; the same size as the crop."""
        slices = crop.shape[3]
        thickness = slices // NUM_SLABS
        start = self.R.randint(slices - thickness - 3 * self.slab_offset + 1)
        starts = [start + i * self.slab_offset for i in range(NUM_SLABS)]
        return torch.cat([crop[..., s : s + thickness] for s in starts], dim=3)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            sample = self.scale(self.crop(result[key])).clamp(0, 1)  # MONAI does not clip where both percentiles agree
            result[key] = sample if self.slab_offset is None else self.join_slabs(sample)
        return result


class RandPrefixd(MapTransform, Randomizable):
    """Draw the length of the bidirectional prefix: uniform from 0 to N - 1, under the key ``prefix``.

    Args:
        keys: the sample, ``(C, X, Y, Z)``; it gives N.
        patch_size: patch in voxels.
    """

    def __init__(self, keys: KeysCollection, patch_size: int | Sequence[int]) -> None:
        super().__init__(keys)
        self.patch_size = np.broadcast_to(patch_size, 3)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        size = result[self.first_key(result)].shape[1:]
        num_patches = math.prod(int(n) // int(p) for n, p in zip(size, self.patch_size, strict=True))
        result["prefix"] = torch.tensor(self.R.randint(num_patches))
        return result


def prepare_next_patch(batch: dict[str, torch.Tensor], device: Any, non_blocking: bool, **kwargs: Any) -> tuple:
    """A batch as MONAI's engines want it: the image, the loss's target (image, prefix), the network's second input."""
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    prefix = batch["prefix"].to(device, non_blocking=non_blocking)
    return image, (image, prefix), (prefix,), {}

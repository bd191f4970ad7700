"""Spatial sequences: one crop of one scan (AR-SSL4M section 3)."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from digar.data.sequences.crops import NUM_SLABS, CropReader, random_window, slab_size
from digar.volumes.intensities import scale_by_percentiles


class SpatialSequenced(MapTransform, Randomizable):
    """A random crop of one scan, each channel scaled by its own 1 and 99.9 percentiles to 0..1.

    An axis shorter than the sample is taken whole and resized. With ``slab_offset`` the sample is built as published:
    four slabs of a quarter of its slices, at s, s + offset, s + 2 offset and s + 3 offset of the crop, joined along z
    (neighbouring slabs overlap, so part of the targets can be copied from earlier tokens); without it, it is the crop.

    Args:
        keys: the scan, ``(C, X, Y, Z)``.
        sample_size: the sample in voxels.
        slab_offset: slices between the starts of neighbouring slabs; None for a contiguous crop.
        slab_start: smallest and largest s, in slices of the crop; None for all that fit.

    Raises:
        ValueError: slabs do not fit into the sample's slices.
    """

    def __init__(
        self,
        keys: KeysCollection,
        sample_size: Sequence[int],
        slab_offset: int | None = None,
        slab_start: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys)
        self.slab_offset = slab_offset
        self.reader = CropReader(sample_size)
        if slab_offset is None:
            return
        self.thickness = slab_size(sample_size)[2]
        last = sample_size[2] - self.thickness - (NUM_SLABS - 1) * slab_offset
        self.starts = (0, last) if slab_start is None else tuple(slab_start)
        if slab_offset < 0 or len(self.starts) != 2 or not 0 <= self.starts[0] <= self.starts[1] <= last:
            raise ValueError(
                f"slab_offset {slab_offset} and slab_start {slab_start} do not fit: {NUM_SLABS} slabs of "
                f"{self.thickness} slices must lie within {sample_size[2]} slices"
            )

    def crop(self, scan: np.ndarray | torch.Tensor) -> torch.Tensor:
        """``(C, X, Y, Z)`` to a random crop ``(C, *sample_size)``, in the scan's own numbers."""
        return torch.from_numpy(self.reader.read(scan, random_window(scan.shape[1:], self.reader.size, self.R)))

    def join_slabs(self, crop: torch.Tensor) -> torch.Tensor:
        """Four overlapping slabs of the crop, joined along z; the same size as the crop."""
        first, last = self.starts
        start = self.R.randint(first, last + 1)
        starts = [start + i * self.slab_offset for i in range(NUM_SLABS)]
        return torch.cat([crop[..., s : s + self.thickness] for s in starts], dim=3)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            sample = scale_by_percentiles(self.crop(result[key]).numpy())
            result[key] = sample if self.slab_offset is None else self.join_slabs(sample)
        return result


def copied_patches(sample_size: Sequence[int], patch_size: Sequence[int], slab_offset: int | None) -> torch.Tensor:
    """Which patches of a spatial sample equal a patch of an earlier slab, by construction: they can be copied.

    Patch k of slab i begins ``i * offset + k * depth`` slices after s. Two that begin alike at the same (x, y) are the
    same voxels, and the one in the later slab comes later in either token order.

    Returns:
        ``(N,)`` bool in raster order (last axis fastest).
    """
    t, h, w = (n // p for n, p in zip(sample_size, patch_size, strict=True))
    copied = torch.zeros(w, dtype=torch.bool)
    depth, thickness = patch_size[2], sample_size[2] // NUM_SLABS
    if slab_offset is not None and thickness % depth == 0:  # else patches lie across two slabs: none repeats whole
        seen: set[int] = set()
        for index in range(w):
            slab, patch = divmod(index, thickness // depth)
            begin = slab * slab_offset + patch * depth
            copied[index] = begin in seen
            seen.add(begin)
    return copied.expand(t, h, w).flatten()

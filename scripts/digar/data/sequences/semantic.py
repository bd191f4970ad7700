"""Semantic sequences: crops around four lesions (or structures) of one class (AR-SSL4M section 3)."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from digar.data.sequences.crops import NUM_SLABS, CropReader, centred_window, slab_size


class SemanticSequenced(MapTransform):
    """Four crops, each a quarter of the sample's slices thick and around a centre of its own, joined along z.

    Each part is scaled by its own 1 and 99.9 percentiles to 0..1. A crop that would leave its scan is moved inside; an
    axis shorter than the crop is taken whole and resized.

    Args:
        keys: the scans, a list of four ``(C, X, Y, Z)``.
        sample_size: the sample in voxels; its slices must be a multiple of 4.
        centre_key: four centres in voxels of their scans.
    """

    def __init__(self, keys: KeysCollection, sample_size: Sequence[int], centre_key: str = "centre") -> None:
        super().__init__(keys)
        self.reader = CropReader(slab_size(sample_size))
        self.centre_key = centre_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raises ValueError where there are not four scans with a centre each."""
        result = dict(data)
        centres = result[self.centre_key]
        for key in self.key_iterator(result):
            if not len(result[key]) == len(centres) == NUM_SLABS:
                raise ValueError(
                    f"a semantic sequence needs {NUM_SLABS} scans and centres, "
                    f"not {len(result[key])} and {len(centres)}"
                )
            parts = [
                self.reader(scan, centred_window(scan.shape[1:], self.reader.size, centre))
                for scan, centre in zip(result[key], centres, strict=True)
            ]
            result[key] = torch.cat(parts, dim=3)
        return result

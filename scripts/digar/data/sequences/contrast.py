"""Contrast sequences: the same crop of the co-registered modalities of one study (AR-SSL4M section 3)."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from digar.data.sequences.crops import NUM_SLABS, CropReader, random_window, slab_size


class ContrastSequenced(MapTransform, Randomizable):
    """One random crop, a quarter of the sample's slices thick, of four modalities, joined along z.

    Each part is scaled by its own 1 and 99.9 percentiles to 0..1. An axis shorter than the crop is taken whole and
    resized.

    Args:
        keys: the four modalities on one grid, a list of four ``(C, X, Y, Z)``.
        sample_size: the sample in voxels; its slices must be a multiple of 4.
    """

    def __init__(self, keys: KeysCollection, sample_size: Sequence[int]) -> None:
        super().__init__(keys)
        self.reader = CropReader(slab_size(sample_size))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raises ValueError where there are not four modalities on one grid."""
        result = dict(data)
        for key in self.key_iterator(result):
            modalities = result[key]
            shapes = [tuple(modality.shape) for modality in modalities]
            if len(shapes) != NUM_SLABS or len(set(shapes)) > 1:
                raise ValueError(f"a contrast sequence needs {NUM_SLABS} modalities on one grid, not {shapes}")
            window = random_window(shapes[0][1:], self.reader.size, self.R)
            result[key] = torch.cat([self.reader(modality, window) for modality in modalities], dim=3)
        return result

"""The bidirectional prefix of a sample; a batch as MONAI's engines want it."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from digar.data.sequences.parts import scale_samples


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


def prepare_next_patch(batch: dict[str, Any], device: Any, non_blocking: bool, **kwargs: Any) -> tuple:
    """A batch as MONAI's engines want it: image, the loss's target (image, prefix, kind), network's second input.

    The images travel as they are stored, a half or a quarter of the bytes, and are resized and scaled on the device.
    """
    image = scale_samples(batch["image"].to(device, non_blocking=non_blocking), batch["extents"]).to(**kwargs)
    prefix, kind = (batch[key].to(device, non_blocking=non_blocking) for key in ("prefix", "kind"))
    return image, (image, prefix, kind), (prefix,), {}

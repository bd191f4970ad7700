"""Windows of a scan: drawn at random or around a centre, read, brought to a size, scaled by their own percentiles."""

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import Resize

from digar.volumes.intensities import scale_by_percentiles

NUM_PARTS = 4  # of a sample that are joined along z

Scan = np.ndarray | torch.Tensor  # (C, X, Y, Z)
Window = tuple[slice, ...]


def random_window(shape: Sequence[int], size: Sequence[int], state: np.random.RandomState) -> Window:
    """A window of the size, uniform over all places; an axis shorter than the size is taken whole.

    Args:
        shape: of the scan, ``(X, Y, Z)``.
        size: in voxels.
        state: draws one number per axis that is longer than the size.
    """
    starts = [state.randint(length - n + 1) if length > n else 0 for length, n in zip(shape, size, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))


def centred_window(shape: Sequence[int], size: Sequence[int], centre: Sequence[float] | np.ndarray) -> Window:
    """The window of the size around a centre (voxels), moved inside the scan; a shorter axis is taken whole."""
    starts = [
        int(np.clip(round(c - (n - 1) / 2), 0, max(length - n, 0)))
        for length, n, c in zip(shape, size, centre, strict=True)
    ]
    return tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))


def part_size(sample_size: Sequence[int]) -> tuple[int, int, int]:
    """A quarter of the sample along z, in voxels.

    Raises:
        ValueError: its slices are no multiple of 4.
    """
    x, y, z = sample_size
    if z % NUM_PARTS:
        raise ValueError(f"sample_size {tuple(sample_size)}: its {z} slices cannot be divided into {NUM_PARTS} parts")
    return x, y, z // NUM_PARTS


class CropReader:
    """Reads a window of a scan as ``(C, *size)`` float32, each channel's 1 and 99.9 percentiles at 0 and 1.

    A window with an axis shorter than the size is resized, linearly.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(int(n) for n in size)
        self.resize = Resize(self.size, mode="trilinear")

    def read(self, scan: Scan, window: Window) -> np.ndarray:
        """The window ``(C, *size)``, in the scan's own numbers; only this part of a memory-mapped scan is read."""
        part = scan[(slice(None), *window)]
        crop = part.numpy() if isinstance(part, torch.Tensor) else part
        crop = np.array(crop, order="C")  # a copy: the scan may be read-only
        if crop.shape[1:] == self.size:
            return crop
        return self.resize(torch.from_numpy(crop.astype(np.float32))).numpy()

    def __call__(self, scan: Scan, window: Window) -> torch.Tensor:
        return scale_by_percentiles(self.read(scan, window))

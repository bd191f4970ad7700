"""Windows of a scan: drawn at random or around a centre, read as stored, resized, scaled by their own percentiles."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

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


def stored(scan: Scan, window: Window) -> torch.Tensor:
    """The window of a scan in its own numbers, a copy; only this part of a memory-mapped scan is read."""
    part = scan[(slice(None), *window)]
    return torch.from_numpy(np.array(part.numpy() if isinstance(part, torch.Tensor) else part, order="C"))


def resized(crop: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A crop ``(C, X, Y, Z)`` brought linearly to ``(C, *size)`` float32; one that has the size is given back."""
    if crop.shape[1:] == tuple(size):
        return crop
    return interpolate(crop[None].float(), tuple(size), mode="trilinear")[0]


def read_crop(scan: Scan, window: Window, size: Sequence[int]) -> torch.Tensor:
    """A window of a scan resized, float32, each channel's 1 and 99.9 percentiles at 0 and 1."""
    return scale_by_percentiles(resized(stored(scan, window), size))

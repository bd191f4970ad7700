"""What a file says of its volume, and the error of a file that cannot be used as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHEAR_TOLERANCE = 0.01  # largest cosine between two voxel axes: 0.6 degrees off a right angle


class VolumeError(ValueError):
    """A file that cannot be used as a volume: ``path`` and ``reason`` (what is wrong, and what to do)."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What a file says of its volume, before any voxel is read.

    Args:
        path: the file or DICOM folder.
        shape: ``(X, Y, Z)`` in voxels.
        channels: further axes and vector components together; 1 for a plain volume.
        affine: voxel to RAS mm, ``(4, 4)`` float64.
        dtype: type of the stored voxels.
        warnings: what is odd, but can be read.
    """

    path: str
    shape: tuple[int, int, int]
    channels: int
    affine: np.ndarray
    dtype: np.dtype
    warnings: tuple[str, ...] = ()

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size along each axis in mm, ``(3,)``."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def split_axes(path: str | Path, axes: Sequence[int]) -> tuple[tuple[int, int, int], int]:
    """Spatial shape, and the further axes as a number of channels: at most one of them is longer than 1."""
    further = [int(n) for n in axes[3:] if n != 1]
    if len(axes) < 3:
        raise VolumeError(path, f"has {len(axes)} axes: a volume of three is needed")
    if len(further) > 1:
        raise VolumeError(
            path, f"has the axes {'x'.join(map(str, axes))}: three are needed, or four with channels last"
        )
    if 0 in axes:
        raise VolumeError(path, f"has the axes {'x'.join(map(str, axes))}: it is empty")
    x, y, z = (int(n) for n in axes[:3])
    return (x, y, z), (further or [1])[0]

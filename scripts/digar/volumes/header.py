"""What a file says of its volume, whether two files lie in one grid, and the error of a file that cannot be used."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GRID_TOLERANCE_MM = 0.1  # how far two grids may place a voxel apart and still be one grid; at most half a voxel
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
        placement: of NIfTI, the fields of the header that say where the volume lies, for masks in its grid.
    """

    path: str
    shape: tuple[int, int, int]
    channels: int
    affine: np.ndarray
    dtype: np.dtype
    warnings: tuple[str, ...] = ()
    placement: Mapping[str, Any] | None = None

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size along each axis in mm, ``(3,)``."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def reading_bytes(self) -> int:
        """Memory per voxel while the file is read: NIfTI is read into its float32; ITK holds the file and two of it."""
        return 4 if self.placement is not None else self.dtype.itemsize + 12


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


def distance_apart(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """How far two voxel-to-RAS affines ``(4, 4)`` place the same voxel of a volume apart at most, in mm."""
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape), (1,))])
    return float(np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max())


def refuse_other_grid(own: Header, reference: Header, role: str, remedy: str = "resample it to that grid") -> None:
    """Refuse a volume that does not lie in the grid of another one, voxel by voxel.

    Args:
        own: of the file that is refused.
        reference: whose grid is wanted.
        role: what the reference is to the file, such as ``its image``.
        remedy: what to do.

    Raises:
        VolumeError: the shapes differ, or the affines by more than ``GRID_TOLERANCE_MM`` (or half a voxel).
    """
    if own.shape != reference.shape:
        shapes = ["x".join(map(str, header.shape)) for header in (own, reference)]
        raise VolumeError(own.path, f"has {shapes[0]} voxels, {role} {reference.path} has {shapes[1]}: {remedy}")
    apart = distance_apart(own.affine, reference.affine, own.shape)
    if apart > min(GRID_TOLERANCE_MM, reference.spacing.min() / 2):
        raise VolumeError(own.path, f"lies {apart:.2g} mm apart from {role} {reference.path}: {remedy}")

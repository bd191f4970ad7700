"""From an image's own grid to the network's and back: axes in RAS order, linear resampling axis by axis.

Orientation and spacing change a volume along its own axes alone, never across them. So a volume is resampled by one
linear interpolation per axis, which takes a fraction of the memory and time of a general resampling, and the way back
can be walked slab by slab. The result is that of MONAI's ``Orientationd`` and ``Spacingd`` (bilinear, border).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from monai.utils.enums import MetaKeys
from torch import Tensor

SAME_GRID = 0.01  # voxels: positions that differ by less at every voxel are the same, and nothing is resampled
STEP_DECIMALS, POSITION_DECIMALS = 8, 6  # equal for all orientations of one volume, in spite of rounding in its affine


@dataclass(frozen=True)
class CanonicalAxes:
    """How the axes of an array become those of RAS order: ``array.permute(order).flip(flipped)``."""

    order: tuple[int, ...]
    flipped: tuple[int, ...]

    @classmethod
    def of(cls, affine: np.ndarray) -> "CanonicalAxes":
        """The axes nearest to right, anterior and superior of a voxel-to-RAS affine ``(4, 4)``."""
        orientation = nib.orientations.io_orientation(affine)  # row per array axis: RAS axis, direction
        order = tuple(int(i) for i in np.argsort(orientation[:, 0]))
        return cls(order, tuple(axis for axis, source in enumerate(order) if orientation[source, 1] < 0))

    def apply(self, array: np.ndarray) -> np.ndarray:
        """A view of the last three axes in RAS order."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.order))
        return np.flip(turned, tuple(lead + axis for axis in self.flipped))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """A view of the last three axes in their former order."""
        lead = array.ndim - 3
        turned = np.flip(array, tuple(lead + axis for axis in self.flipped))
        return turned.transpose(*range(lead), *(lead + int(axis) for axis in np.argsort(self.order)))

    def turn_affine(self, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The affine of the array in RAS order; ``shape`` is that of the array before."""
        turned = affine[:, [*self.order, 3]].copy()
        for axis in self.flipped:
            turned[:, 3] += turned[:, axis] * (shape[self.order[axis]] - 1)
            turned[:, axis] *= -1
        return turned


def resample(volume: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Linear interpolation along one axis.

    Args:
        volume: any shape.
        axis: along which to interpolate.
        positions: where, in voxels, ``(n,)`` float64; beyond the ends the last voxel is repeated.
    """
    last = volume.shape[axis] - 1
    inside = positions.clamp(0, last)
    low = inside.floor().long()
    weight = (inside - low).to(volume.dtype)
    shape = [1] * volume.dim()
    shape[axis] = len(positions)
    lower = volume.index_select(axis, low)
    return lower.lerp_(volume.index_select(axis, (low + 1).clamp(max=last)), weight.view(shape))


def working_axis(length: int, zoom: float, spacing: float) -> Tensor | None:
    """Positions in an axis of ``length`` voxels of ``zoom`` mm of new voxels of ``spacing`` mm; None: the same voxels.

    The first voxels coincide, as in MONAI's ``Spacingd``.
    """
    step = round(float(spacing / zoom), STEP_DECIMALS)
    if abs(step - 1) * length < SAME_GRID:
        return None
    count = max(int(np.round((length - 1) / step + 1)), 1)
    return (torch.arange(count, dtype=torch.float64) * step).round(decimals=POSITION_DECIMALS)


def working_shape(shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float]) -> tuple[int, ...]:
    """Size in voxels, in RAS order, of an array at the given spacing in mm."""
    axes = CanonicalAxes.of(affine)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    sizes = []
    for source, wanted in zip(axes.order, spacing, strict=True):
        positions = working_axis(shape[source], zooms[source], wanted)
        sizes.append(shape[source] if positions is None else len(positions))
    return tuple(sizes)


class WorkingGridd(MapTransform):
    """Bring volumes ``(C, X, Y, Z)`` with their affine into RAS order and to a spacing.

    A volume keeps in its metadata where it came from (``original_affine``, ``spatial_shape``), which is all that the
    way back needs. One without an axis of channels gets it.

    Args:
        keys: of the volumes, MetaTensors.
        spacing: voxel size in mm along right, anterior and superior; None: the axes are turned, nothing is resampled.
        mode: ``linear`` for images, ``nearest`` for labels; one, or one per key.

    Raises:
        ValueError: another mode.
    """

    def __init__(
        self, keys: str | Sequence[str], spacing: Sequence[float] | None, mode: str | Sequence[str] = "linear"
    ) -> None:
        super().__init__(keys)
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.modes = ensure_tuple_rep(mode, len(self.keys))
        if not set(self.modes) <= {"linear", "nearest"}:
            raise ValueError(f"mode {mode!r} must be linear or nearest")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        moved = dict(data)
        for key, mode in self.key_iterator(moved, self.modes):
            moved[key] = self.to_working_grid(moved[key], mode)
        return moved

    def to_working_grid(self, image: MetaTensor, mode: str = "linear") -> MetaTensor:
        """The volume in the working grid."""
        values = image.cpu().numpy()
        values = values[None] if values.ndim == 3 else values
        source, shape = image.affine.cpu().numpy().astype(np.float64), values.shape[1:]
        axes = CanonicalAxes.of(source)
        volume = torch.from_numpy(np.ascontiguousarray(axes.apply(values)))
        affine = axes.turn_affine(source, shape)
        zooms = np.linalg.norm(affine[:3, :3], axis=0)
        for axis, spacing in enumerate(self.spacing or ()):
            positions = working_axis(volume.shape[1 + axis], zooms[axis], spacing)
            if positions is None:
                continue
            if mode == "nearest":
                nearest = (positions + 0.5).floor().long().clamp(0, volume.shape[1 + axis] - 1)
                volume = volume.index_select(1 + axis, nearest)
            else:
                volume = resample(volume.float(), 1 + axis, positions)
            affine[:3, axis] *= spacing / zooms[axis]
        origin = {MetaKeys.ORIGINAL_AFFINE: source, MetaKeys.SPATIAL_SHAPE: np.array(shape)}
        return placed(volume if mode == "nearest" else volume.float(), affine, image, **origin)


def placed(volume: Tensor, affine: np.ndarray, image: MetaTensor, **changed: Any) -> MetaTensor:
    """A volume with an affine of its own and the other metadata of an image, some of them ``changed``."""
    meta = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE} | changed
    return MetaTensor(volume, affine=torch.from_numpy(affine), meta=meta)


def positions_between(source: np.ndarray, shape: Sequence[int], working: np.ndarray) -> list[Tensor]:
    """Where the voxels of a grid lie in another one whose axes are parallel: positions along each axis, in voxels.

    Args:
        source: affine in RAS order of the grid whose voxels are looked for.
        shape: its size.
        working: affine of the grid in which they are looked for.

    Raises:
        ValueError: the axes are not parallel.
    """
    between = np.linalg.inv(working) @ source
    across = between[:3, :3] - np.diag(between.diagonal()[:3])
    if np.abs(across * np.asarray(shape)).max() > 0.05:
        raise ValueError("the prediction's axes are not parallel to the image's: nothing but orientation and spacing")
    return [
        (torch.arange(n, dtype=torch.float64) * between[axis, axis] + between[axis, 3]).round(
            decimals=POSITION_DECIMALS
        )
        for axis, n in enumerate(shape)
    ]

"""Augmentation that respects thick slices."""

from collections.abc import Sequence
from typing import Any

from monai.transforms import RandAffined
from monai.utils import ensure_tuple_rep

THICK = 3  # times the finest voxel: nnU-Net's threshold for augmenting slice by slice


def in_plane_affine(
    patch_size: int | Sequence[int],
    rotate_range: Sequence[float],
    scale_range: Sequence[float],
    translate_range: Sequence[float] = (0, 0, 0),
    **options: Any,
) -> RandAffined:
    """Random turns, scalings and shifts; in plane alone where slices are thick.

    MONAI turns an array in voxels. A few slices of 10 mm turned out of their plane leave the crop, and what is
    interpolated between them looks like no slice (Isensee et al., Nature Methods 2021, augment those in plane too).

    Args:
        patch_size: in voxels, one for all axes or one each; a side under a third of the longest says that the voxels
            are thick along that axis.
        rotate_range: radians about each axis; 0 is taken for turns that would mix a thick axis with another.
        scale_range, translate_range: share and voxels along each axis; 0 is taken along a thick one.
        options: further arguments of ``RandAffined``.
    """
    sides = ensure_tuple_rep(patch_size, 3)
    thick = [THICK * side < max(sides) for side in sides]
    turns = [0.0 if any(thick[:axis] + thick[axis + 1 :]) else r for axis, r in enumerate(rotate_range)]
    scales, shifts = (
        [0.0 if is_thick else r for r, is_thick in zip(ranges, thick, strict=True)]
        for ranges in (scale_range, translate_range)
    )
    return RandAffined(rotate_range=turns, scale_range=scales, translate_range=shifts, **options)

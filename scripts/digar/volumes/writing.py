"""Writing masks in the grid of their image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def write_mask(
    path: str | Path, mask: np.ndarray, affine: np.ndarray, placement: Mapping[str, Any] | None = None
) -> None:
    """Write labels as NIfTI in the grid of an image.

    Of a NIfTI image the mask takes the shape, both forms with their codes, and the units; of another, the affine as a
    scanner's. Nothing else of the header is taken: it may name the patient. Where the image has no qform, the voxel
    size in ``pixdim`` is that of the sform, whatever stood there.

    Args:
        path: ``.nii.gz`` or ``.nii``; a temporary one, see :func:`digar.volumes.files.whole_file`.
        mask: ``(X, Y, Z)`` or ``(X, Y, Z, T)``, of integers.
        affine: of the image, voxel to RAS mm.
        placement: of a NIfTI image, see :class:`digar.volumes.header.Header`.

    Raises:
        OSError: the mask cannot be written.
    """
    written = nib.Nifti2Image(mask, affine) if max(mask.shape) > 32767 else nib.Nifti1Image(mask, affine)
    if placement is not None:
        header, sizes = written.header, written.header["pixdim"].copy()
        for name, value in placement.items():
            header[name] = value
        header["pixdim"][1 + mask.ndim :] = sizes[1 + mask.ndim :]
        if not placement["qform_code"]:
            header["pixdim"][1:4] = sizes[1:4]
    else:
        written.set_sform(affine, "scanner")
        written.set_qform(affine, "scanner")
        written.header.set_xyzt_units("mm")
    written.to_filename(path)

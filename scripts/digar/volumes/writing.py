"""Writing masks in the grid of their image: whole or not at all."""

from pathlib import Path

import nibabel as nib
import numpy as np

from digar.volumes.files import whole_file
from digar.volumes.reading import NIFTI_SUFFIXES, volume_suffix


def write_mask(path: str | Path, mask: np.ndarray, image_path: str | Path, affine: np.ndarray) -> None:
    """Write labels as NIfTI in the grid of an image.

    Of a NIfTI image the mask takes the shape, both forms with their codes, and the units; of another, the affine as a
    scanner's. Nothing else of the header is taken: it may name the patient.

    Args:
        path: ``.nii.gz`` or ``.nii``.
        mask: ``(X, Y, Z)`` or ``(X, Y, Z, T)``, of integers.
        image_path: the image.
        affine: its voxel-to-RAS affine.

    Raises:
        OSError: the mask cannot be written.
    """
    written = nib.Nifti2Image(mask, affine) if max(mask.shape) > 32767 else nib.Nifti1Image(mask, affine)
    if volume_suffix(image_path) in NIFTI_SUFFIXES:
        source = nib.load(image_path).header
        header = written.header
        for name in ("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d",
                     "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):  # fmt: skip
            header[name] = source[name]
        header["pixdim"][: 1 + mask.ndim] = source["pixdim"][: 1 + mask.ndim]
    else:
        written.set_sform(affine, "scanner")
        written.set_qform(affine, "scanner")
        written.header.set_xyzt_units("mm")
    with whole_file(path) as temporary:
        written.to_filename(temporary)

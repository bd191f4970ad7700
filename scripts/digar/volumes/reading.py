"""Reading a volume from a file or a DICOM folder: the one way in for every workflow."""

import logging
import zlib
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils.enums import MetaKeys
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from digar.volumes.dicom import SeriesHeader, is_series, series_files, series_header, series_voxels
from digar.volumes.header import SHEAR_TOLERANCE, Header, VolumeError
from digar.volumes.itk_files import ITK_SUFFIXES, itk_header, itk_voxels, refuse_damage
from digar.volumes.nifti import NIFTI_SUFFIXES, nifti_header, nifti_voxels
from digar.volumes.remote import is_remote

logger = logging.getLogger(__name__)

VOLUME_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
UNREADABLE = (  # what nibabel, gzip and ITK raise on damaged files
    HeaderDataError, WrapStructError, OSError, EOFError, ValueError, TypeError, LookupError, OverflowError,
    RuntimeError, zlib.error,
)  # fmt: skip
SPACING_MM = (0.005, 15.0)  # smallest and largest edge of a voxel: beyond, the header or its unit is wrong


def volume_suffix(path: str | Path) -> str | None:
    """The ending of a file name that tells a volume, in lower case, or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), None)


def volume_exists(path: str | Path) -> bool:
    """Whether there is what a path names: a file, or a DICOM series."""
    return Path(path).exists() or is_series(path)


def volume_files(path: str | Path) -> list[Path]:
    """The files that a volume is read from: those of a DICOM series, or the file itself.

    Raises:
        VolumeError: a folder does not hold exactly one series.
    """
    return series_files(path) if is_series(path) else [Path(path)]


def read_header(path: str | Path) -> Header:
    """Shape, affine and type of a NIfTI, MetaImage or NRRD file, or of a DICOM series (:mod:`digar.volumes.dicom`).

    NIfTI places a volume by its sform if that has a positive code, else by its qform.

    Raises:
        VolumeError: missing, unreadable, not a volume of numbers, flat, or with an unusable affine.
    """
    series = is_series(path)
    if not volume_exists(path):
        if is_remote(path):
            raise VolumeError(path, "is not on this machine: only `digar pretrain` fetches scans; fetch it yourself")
        raise VolumeError(path, "there is no such file")
    try:
        if series:
            header: Header = series_header(path)
        elif volume_suffix(path) in ITK_SUFFIXES:
            header = itk_header(path)
        else:
            header = nifti_header(path)
    except VolumeError:
        raise
    except UNREADABLE as error:
        raise VolumeError(path, _unreadable(error)) from error
    _refuse_affine(header)
    if min(header.shape) < 2:
        raise VolumeError(path, f"is a single slice of {'x'.join(map(str, header.shape))} voxels: a volume is needed")
    return header


def read_volume(path: str | Path, header: Header | None = None) -> MetaTensor:
    """A volume as ``(C, X, Y, Z)`` float32 with its affine (voxel to RAS mm); axes beyond the third become C.

    The voxels are those of the file, NaN and infinite ones included. What is odd about the header is logged, unless the
    caller has read it before.

    Args:
        path: a NIfTI, MetaImage or NRRD file, or what names a DICOM series (:mod:`digar.volumes.dicom`).
        header: of the file, where it is known already.

    Raises:
        VolumeError: see :func:`read_header`; or the file ends too early.
    """
    if header is None:
        header = read_header(path)
        for warning in header.warnings:
            logger.warning("%s: %s", path, warning)
    try:
        if isinstance(header, SeriesHeader):
            array = series_voxels(header)
        elif volume_suffix(path) in ITK_SUFFIXES:
            refuse_damage(path)
            array = itk_voxels(header)
        else:
            array = nifti_voxels(header)
        channels_last = array.reshape(*header.shape, header.channels)  # drops axes of 1
    except VolumeError:
        raise
    except UNREADABLE as error:
        raise VolumeError(path, _unreadable(error)) from error
    volume = np.moveaxis(channels_last, -1, 0)  # not copied: the first axis is mostly the fastest
    meta = {
        MetaKeys.ORIGINAL_AFFINE: header.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(header.shape),
        "filename_or_obj": str(path),
    }
    return MetaTensor(torch.from_numpy(volume), affine=torch.from_numpy(header.affine.copy()), meta=meta)


def _unreadable(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"cannot be read ({type(error).__name__}: {text})"


def _refuse_affine(header: Header) -> None:
    """Raise a VolumeError for an affine that is not finite, has a zero or collapsed axis, or is sheared."""
    if not np.isfinite(header.affine).all():
        raise VolumeError(header.path, "its affine or spacing is not a number: correct the header")
    if not (header.spacing.min() >= SPACING_MM[0] and header.spacing.max() <= SPACING_MM[1]):
        spacing = " x ".join(f"{s:g}" for s in header.spacing)
        raise VolumeError(
            header.path,
            f"its spacing is {spacing} mm, and only {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm can be right: correct "
            "the header",
        )
    axes = header.affine[:3, :3] / header.spacing
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if abs(np.linalg.det(axes)) < 1e-3:
        raise VolumeError(header.path, "its affine is singular, two voxel axes point the same way: correct the header")
    if cosine > SHEAR_TOLERANCE:
        angle = np.degrees(np.arccos(cosine))
        raise VolumeError(
            header.path,
            f"its affine is sheared, two voxel axes meet at {angle:.1f} degrees: resample it to a right-angled grid",
        )

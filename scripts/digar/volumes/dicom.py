"""DICOM series: which files belong to one, in which order, and where the stack of their slices lies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from digar.volumes.header import Header, VolumeError
from digar.volumes.itk_files import itk_affine, itk_header, itk_information

GAP_TOLERANCE_MM = 0.1  # how far the distances of neighbouring slices may differ


def is_dicom(file: str | Path) -> bool:
    """Whether a file begins as DICOM files do; a file that cannot be opened does not."""
    try:
        with open(file, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_header(folder: str | Path) -> Header:
    """Shape, affine and type of the DICOM series in a folder; see :func:`digar.volumes.reading.read_header`."""
    files = series_files(folder)
    first = replace(itk_header(files[0]), path=str(folder))
    if len(files) == 1:
        return first
    affine = stack_affine(folder, [itk_information(file) for file in files])
    return replace(first, shape=(*first.shape[:2], len(files)), affine=affine)


def series_files(folder: str | Path) -> list[str]:
    """The files of a folder's DICOM series, in the order of its slices.

    Raises:
        VolumeError: the folder holds none, or several.
    """
    import itk

    names = itk.GDCMSeriesFileNames.New()  # with MONAI's settings: its reader takes the files in the same order
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    series = names.GetSeriesUIDs()
    if len(series) != 1:
        raise VolumeError(folder, f"holds {len(series) or 'no'} DICOM series: a folder with one is needed")
    return list(names.GetFileNames(series[0]))


def stack_affine(folder: str | Path, slices: Sequence[Any]) -> np.ndarray:
    """Affine of a stack of single slices in RAS mm.

    Raises:
        VolumeError: the slices differ in size or direction, or do not lie at equal distances.
    """
    first = itk_affine(slices[0])
    for information in slices:
        size = [information.GetDimensions(i) == slices[0].GetDimensions(i) for i in (0, 1)]
        if not all(size) or not np.allclose(itk_affine(information)[:3, :2], first[:3, :2], atol=1e-3):
            raise VolumeError(folder, "its DICOM slices differ in size or direction: separate the series")
    positions = np.array([itk_affine(information)[:3, 3] for information in slices])
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if gaps.max() - gaps.min() > GAP_TOLERANCE_MM or gaps.min() == 0:
        raise VolumeError(
            folder,
            f"its DICOM slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart: a slice is missing, or series are "
            "mixed",
        )
    first[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
    return first

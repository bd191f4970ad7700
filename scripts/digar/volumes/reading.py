"""Reading a volume from a file or a DICOM folder: the one way in for every workflow."""

import itertools
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ITKReader, MetaTensor
from monai.utils.enums import MetaKeys
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
VOLUME_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
UNREADABLE = (  # what nibabel, gzip and ITK raise on damaged files
    ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, LookupError, OverflowError, RuntimeError,
    zlib.error,
)  # fmt: skip
FORM_TOLERANCE_MM = 0.1  # how far sform and qform may lie apart before it is said
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


def volume_suffix(path: str | Path) -> str | None:
    """The ending of a file name that tells a volume, in lower case, or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), None)


def is_dicom(file: str | Path) -> bool:
    """Whether a file begins as DICOM files do; a file that cannot be opened does not."""
    try:
        with open(file, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: str | Path) -> Header:
    """Shape, affine and type of a NIfTI, MetaImage or NRRD file, or of the DICOM series in a folder.

    NIfTI places a volume by its sform if that has a positive code, else by its qform.

    Raises:
        VolumeError: missing, unreadable, not a volume of numbers, flat, or with an unusable affine.
    """
    if not Path(path).exists():
        raise VolumeError(path, "there is no such file")
    try:
        if volume_suffix(path) in ITK_SUFFIXES or Path(path).is_dir():
            header = _itk_header(path)
        else:
            header = _nifti_header(path, nib.load(path))
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

    The voxels are those of the file, NaN and infinite ones included. What is odd about the header is logged.

    Args:
        path: a NIfTI, MetaImage or NRRD file, or a folder with one DICOM series.
        header: of the file, where it is known already.

    Raises:
        VolumeError: see :func:`read_header`; or the file ends too early.
    """
    header = header or read_header(path)
    for warning in header.warnings:
        logger.warning("%s: %s", path, warning)
    try:
        if volume_suffix(path) in ITK_SUFFIXES or Path(path).is_dir():
            array = _itk_voxels(header)
        else:
            array = np.asanyarray(nib.load(path).dataobj, dtype=np.float32)
        channels_last = array.reshape(*header.shape, header.channels)  # drops axes of 1
    except UNREADABLE as error:
        raise VolumeError(path, _unreadable(error)) from error
    volume = np.ascontiguousarray(np.moveaxis(channels_last, -1, 0))
    meta = {
        MetaKeys.ORIGINAL_AFFINE: header.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(header.shape),
        "filename_or_obj": str(path),
    }
    return MetaTensor(volume, affine=header.affine.copy(), meta=meta)


def _unreadable(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"cannot be read ({type(error).__name__}: {text})"


def _refuse_affine(header: Header) -> None:
    """Raise a VolumeError for an affine that is not finite, has a zero or collapsed axis, or is sheared."""
    if not np.isfinite(header.affine).all():
        raise VolumeError(header.path, "its affine or spacing is not a number: correct the header")
    if (header.spacing <= 0).any():
        spacing = " x ".join(f"{s:g}" for s in header.spacing)
        raise VolumeError(header.path, f"its spacing is {spacing} mm: correct the header")
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


# NIfTI


def _nifti_header(path: str | Path, image: nib.spatialimages.SpatialImage) -> Header:
    if not isinstance(image, nib.Nifti1Pair):
        raise VolumeError(path, f"is a {type(image).__name__}, not NIfTI: rename or convert it")
    dtype = image.get_data_dtype()
    if dtype.names is not None:
        raise VolumeError(path, "holds colours (RGB): a volume of plain numbers is needed")
    if dtype.kind == "c":
        raise VolumeError(path, f"holds complex numbers ({dtype}): save the magnitude")
    shape, channels = _split_axes(path, image.shape)
    return Header(str(path), shape, channels, image.affine.astype(np.float64), dtype, _form_warnings(image, shape))


def _split_axes(path: str | Path, axes: Sequence[int]) -> tuple[tuple[int, int, int], int]:
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


def _form_warnings(image: nib.Nifti1Pair, shape: Sequence[int]) -> tuple[str, ...]:
    """What is odd about the two ways in which a NIfTI header places the volume."""
    sform = image.header.get_sform(coded=True)[0]
    try:
        qform = image.header.get_qform(coded=True)[0]
    except HeaderDataError as error:
        if sform is None:
            raise
        return (f"its qform is invalid ({error}); the sform is used",)
    if sform is None and qform is None:
        return ("has neither sform nor qform: its orientation is a guess",)
    if sform is None or qform is None:
        return ()
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
    apart = np.linalg.norm((corners @ (sform - qform)[:3, :3].T) + (sform - qform)[:3, 3], axis=1).max()
    if apart > FORM_TOLERANCE_MM:
        return (f"sform and qform lie up to {apart:.2g} mm apart; the sform is used",)
    return ()


# MetaImage, NRRD and DICOM, by ITK; it is large, so it is imported where such a file is met


def _itk_header(path: str | Path) -> Header:
    files = series_files(path) if Path(path).is_dir() else [str(path)]
    information = _information(files[0])
    axes = [information.GetDimensions(i) for i in range(information.GetNumberOfDimensions())]
    pixel = information.GetPixelTypeAsString(information.GetPixelType())
    if pixel == "complex":
        raise VolumeError(path, "holds complex numbers: save the magnitude")
    dtype = np.dtype(_ITK_TYPES[information.GetComponentTypeAsString(information.GetComponentType())])
    components = information.GetNumberOfComponents()
    if pixel in ("rgb", "rgba") and dtype == np.uint8:
        raise VolumeError(path, f"holds colours ({pixel.upper()}): a volume of plain numbers is needed")
    if len(files) > 1:
        slices = [_information(file) for file in files]
        return Header(str(path), (axes[0], axes[1], len(files)), components, _stack_affine(path, slices), dtype)
    shape, channels = _split_axes(path, axes)
    if components > 4 or (components > 1 and channels > 1):
        raise VolumeError(path, f"has {components} components: three axes and up to four components are needed")
    return Header(str(path), shape, channels * components, _ras_affine(information), dtype)


_ITK_TYPES = {
    "unsigned_char": "u1", "char": "i1", "unsigned_short": "u2", "short": "i2", "unsigned_int": "u4", "int": "i4",
    "unsigned_long": "u8", "long": "i8", "unsigned_long_long": "u8", "long_long": "i8", "float": "f4", "double": "f8",
}  # fmt: skip


def _itk_voxels(header: Header) -> np.ndarray:
    """The voxels as ``(X, Y, Z)`` or ``(X, Y, Z, C)`` float32."""
    import itk

    vector = 1 < header.channels <= 4 and _information(header.path).GetNumberOfComponents() > 1
    # the type is named because ITK's Python knows no image of int8, and vectors of floats alone
    reader = ITKReader(pixel_type=itk.Vector[itk.F, header.channels] if vector else itk.F)
    return reader.get_data(reader.read(header.path))[0]


def _information(file: str) -> Any:  # an itk.ImageIOBase; the library is not imported here
    """ITK's description of a file, without its voxels.

    Raises:
        VolumeError: no format of ITK fits.
    """
    import itk

    image_io = itk.ImageIOFactory.CreateImageIO(file, itk.CommonEnums.IOFileMode_ReadMode)
    if image_io is None:
        raise VolumeError(file, "cannot be read: it is not what its ending (in small letters) says")
    image_io.SetFileName(file)
    image_io.ReadImageInformation()
    return image_io


def _ras_affine(information: Any) -> np.ndarray:
    """Affine in RAS mm from ITK's direction, spacing and origin, which are in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([information.GetDirection(i)[:3] for i in range(3)]).T
    affine[:3, :3] *= [information.GetSpacing(i) for i in range(3)]
    affine[:3, 3] = [information.GetOrigin(i) for i in range(3)]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


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


def _stack_affine(folder: str | Path, slices: Sequence[Any]) -> np.ndarray:
    """Affine of a stack of single slices in RAS mm.

    Raises:
        VolumeError: the slices differ in size or direction, or do not lie at equal distances.
    """
    first = _ras_affine(slices[0])
    for information in slices:
        size = [information.GetDimensions(i) == slices[0].GetDimensions(i) for i in (0, 1)]
        if not all(size) or not np.allclose(_ras_affine(information)[:3, :2], first[:3, :2], atol=1e-3):
            raise VolumeError(folder, "its DICOM slices differ in size or direction: separate the series")
    positions = np.array([_ras_affine(information)[:3, 3] for information in slices])
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if gaps.max() - gaps.min() > FORM_TOLERANCE_MM or gaps.min() == 0:
        raise VolumeError(
            folder,
            f"its DICOM slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart: a slice is missing, or series are "
            "mixed",
        )
    first[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
    return first

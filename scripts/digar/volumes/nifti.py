"""NIfTI files: where their header places the volume, and their voxels, read to the end of the file."""

import gzip
from io import BufferedReader
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from digar.volumes.header import GRID_TOLERANCE_MM, Header, VolumeError, distance_apart, split_axes

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PLACING_FIELDS = (
    "sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
    "qoffset_y", "qoffset_z", "xyzt_units", "pixdim",
)  # fmt: skip
NIFTI_2 = tuple((540).to_bytes(4, order) for order in ("little", "big"))  # how such a file begins: its header's size
SLICES = 16  # read at once


def nifti_header(path: str | Path) -> Header:
    """Shape, affine and type of a file; see :func:`digar.volumes.reading.read_header`."""
    with _open(path) as stream:
        stored, header = _headers(stream)
    if header["magic"].item() == header.pair_magic:
        raise VolumeError(path, "is a header whose voxels are in another file (.hdr and .img): convert it to one file")
    dtype = header.get_data_dtype()
    if dtype.names is not None:
        raise VolumeError(path, "holds colours (RGB): a volume of plain numbers is needed")
    if dtype.kind == "c":
        raise VolumeError(path, f"holds complex numbers ({dtype}): save the magnitude")
    shape, channels = split_axes(path, header.get_data_shape())
    sform, qform, warnings = _forms(header, shape)
    sizes = stored["pixdim"][1:4]
    if sform is None and not (sizes > 0).all():  # nibabel would take 1 for 0, and the size for its negative
        raise VolumeError(path, f"its spacing is {' x '.join(f'{s:g}' for s in sizes)} mm: correct the header")
    affine = next(form for form in (sform, qform, header.get_best_affine()) if form is not None)
    placement = {name: header[name].copy() for name in PLACING_FIELDS}
    return Header(str(path), shape, channels, affine.astype(np.float64), dtype, warnings, placement)


def nifti_voxels(header: Header) -> np.ndarray:
    """The voxels of a file as ``(X, Y, Z, C)`` float32, the first axis fastest.

    They are read in parts, so that nothing but the result is held, and a compressed file is read to its end, where its
    checksum stands.

    Raises:
        EOFError, OSError, ValueError: the file ends too early, or its checksum is wrong.
    """
    values = np.empty((*header.shape, header.channels), np.float32, order="F")
    slices = values.reshape(*header.shape[:2], -1, order="F")
    with _open(header.path) as stream, np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
        own = _headers(stream)[1]
        slope, inter = own.get_slope_inter()
        stream.seek(own.get_data_offset())
        for first in range(0, slices.shape[2], SLICES):
            part = slices[:, :, first : first + SLICES]
            content = stream.read(part.size * header.dtype.itemsize)
            if len(content) < part.size * header.dtype.itemsize:
                raise EOFError(f"it ends after {first} of {slices.shape[2]} slices")
            numbers = np.frombuffer(content, header.dtype).reshape(part.shape, order="F")
            part[...] = numbers if slope is None else numbers * float(slope) + float(inter)
        while isinstance(stream, gzip.GzipFile) and stream.read(1 << 20):
            pass
    return values


def _open(path: str | Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if Path(path).name.lower().endswith(".gz") else open(path, "rb")


def _headers(stream: gzip.GzipFile | BufferedReader) -> tuple[nib.Nifti1Header, nib.Nifti1Header]:
    """The header as it stands in the file, and as nibabel mends it when it checks."""
    start = stream.read(4)
    kind = nib.Nifti2Header if start in NIFTI_2 else nib.Nifti1Header
    block = start + stream.read(kind.template_dtype.itemsize - 4)
    return kind(block, check=False), kind(block)


def _forms(
    header: nib.Nifti1Header, shape: tuple[int, int, int]
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    """Both ways in which a header places the volume, where it has them, and what is odd about them."""
    sform = header.get_sform(coded=True)[0]
    try:
        qform = header.get_qform(coded=True)[0]
    except HeaderDataError as error:
        if sform is None:
            raise
        return sform, None, (f"its qform is invalid ({error}); the sform is used",)
    if sform is None and qform is None:
        return None, None, ("has neither sform nor qform: its orientation is a guess",)
    if sform is not None and qform is not None:
        apart = distance_apart(sform, qform, shape)
        if apart > GRID_TOLERANCE_MM:
            return sform, qform, (f"sform and qform lie up to {apart:.2g} mm apart; the sform is used",)
    return sform, qform, ()

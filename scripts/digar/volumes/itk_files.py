"""MetaImage and NRRD files, and the slices of DICOM series, by ITK: large, so imported where such a file is met."""

import bz2
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from monai.data import ITKReader

from digar.volumes.header import Header, VolumeError, split_axes

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")


def itk_header(path: str | Path) -> Header:
    """Shape, affine and type of a file; see :func:`digar.volumes.reading.read_header`."""
    information = itk_information(path)
    axes = [information.GetDimensions(i) for i in range(information.GetNumberOfDimensions())]
    pixel = information.GetPixelTypeAsString(information.GetPixelType())
    if pixel == "complex":
        raise VolumeError(path, "holds complex numbers: save the magnitude")
    dtype = np.dtype(_ITK_TYPES[information.GetComponentTypeAsString(information.GetComponentType())])
    components = information.GetNumberOfComponents()
    if pixel in ("rgb", "rgba") and dtype == np.uint8:
        raise VolumeError(path, f"holds colours ({pixel.upper()}): a volume of plain numbers is needed")
    shape, channels = split_axes(path, axes)
    if components > 4 or (components > 1 and channels > 1):
        raise VolumeError(path, f"has {components} components: three axes and up to four components are needed")
    return Header(str(path), shape, channels * components, itk_affine(information), dtype)


_ITK_TYPES = {
    "unsigned_char": "u1", "char": "i1", "unsigned_short": "u2", "short": "i2", "unsigned_int": "u4", "int": "i4",
    "unsigned_long": "u8", "long": "i8", "unsigned_long_long": "u8", "long_long": "i8", "float": "f4", "double": "f8",
}  # fmt: skip


def refuse_damage(path: str | Path) -> None:
    """Read the compressed voxels of a MetaImage or NRRD file to the end; ITK fills in what it cannot decompress.

    Raises:
        EOFError, OSError, zlib.error: they end too early, or their checksum is wrong.
    """
    with open(path, "rb") as stream:
        nrrd = Path(path).suffix.lower() == ".nrrd"
        fields = _fields(stream, *((":", "") if nrrd else ("=", "elementdatafile")))
        place = fields.get("data file", fields.get("datafile", fields.get("elementdatafile", "local")))
        encoding = fields.get("encoding", "zlib" if fields.get("compresseddata", "").lower().startswith("t") else "raw")
        if encoding not in _DECOMPRESSED or place.upper().startswith("LIST") or "%" in place:
            return
        with open(Path(path).parent / place, "rb") if place.lower() != "local" else nullcontext(stream) as voxels:
            _DECOMPRESSED[encoding](voxels)


def _fields(stream: BinaryIO, sign: str, last: str) -> dict[str, str]:
    """The fields of a text header, up to the last one or an empty line; the stream then stands behind them."""
    fields = {}
    for _ in range(_MOST_FIELDS):
        line = stream.readline(_LONGEST_FIELD).decode("latin-1").strip()
        name, _, value = line.partition(sign)
        fields[name.strip().lower()] = value.strip()
        if name.strip().lower() == last:
            break
    return fields


def _decompress_zlib(stream: BinaryIO) -> None:
    decompressor, rest = zlib.decompressobj(zlib.MAX_WBITS | 32), b""  # zlib's format or gzip's
    while not decompressor.eof:
        rest = rest or stream.read(_BLOCK)
        if not rest:
            raise EOFError("its compressed voxels end too early")
        decompressor.decompress(rest, _BLOCK)
        rest = decompressor.unconsumed_tail


def _decompress_bzip2(stream: BinaryIO) -> None:
    with bz2.open(stream) as voxels:
        while voxels.read(_BLOCK):
            pass


_DECOMPRESSED = {
    "zlib": _decompress_zlib, "gzip": _decompress_zlib, "gz": _decompress_zlib,
    "bzip2": _decompress_bzip2, "bz2": _decompress_bzip2,
}  # fmt: skip
_MOST_FIELDS, _LONGEST_FIELD = 10_000, 1 << 16
_BLOCK = 1 << 20


def itk_voxels(header: Header) -> np.ndarray:
    """The voxels of a file or DICOM folder as ``(X, Y, Z)`` or ``(X, Y, Z, C)`` float32."""
    import itk

    vector = 1 < header.channels <= 4 and itk_information(header.path).GetNumberOfComponents() > 1
    # the type is named because ITK's Python knows no image of int8, and vectors of floats alone
    reader = ITKReader(pixel_type=itk.Vector[itk.F, header.channels] if vector else itk.F)
    return reader.get_data(reader.read(header.path))[0]


def itk_information(file: str | Path) -> Any:  # an itk.ImageIOBase; the library is not imported here
    """ITK's description of a file, without its voxels.

    Raises:
        VolumeError: no format of ITK fits.
    """
    import itk

    image_io = itk.ImageIOFactory.CreateImageIO(str(file), itk.CommonEnums.IOFileMode_ReadMode)
    if image_io is None:
        raise VolumeError(file, "cannot be read: it is not what its ending (in small letters) says")
    image_io.SetFileName(str(file))
    image_io.ReadImageInformation()
    return image_io


def itk_affine(information: Any) -> np.ndarray:
    """Affine in RAS mm from ITK's direction, spacing and origin, which are in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([information.GetDirection(i)[:3] for i in range(3)]).T
    affine[:3, :3] *= [information.GetSpacing(i) for i in range(3)]
    affine[:3, 3] = [information.GetOrigin(i) for i in range(3)]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

"""DICOM series: which files make one, and its volume.

A series is named by a path: the folder that holds it alone, ``FOLDER/SERIES_UID`` where the folder (or a folder below)
holds others too, or a multi-frame file. What belongs to it is decided by SeriesInstanceUID, wherever below the folder
the files lie and whatever else their headers say; how its slices lie, by their positions alone.
"""

import functools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.uid import generate_uid
from tqdm import tqdm

from digar.volumes.dicom_frames import UNREADABLE_DICOM, Frame, read_frames, stack
from digar.volumes.files import printable
from digar.volumes.header import Header, VolumeError
from digar.volumes.walk import walk

logger = logging.getLogger(__name__)

UID_NAME = re.compile(r"[0-9]+(\.[0-9]+)+")
DICOM_SUFFIXES = (".dcm", ".ima")
IMAGE_CLASSES = ("Image Storage", "US Volume Storage")  # how the names of SOP classes end that are images
DESCRIBED = ("SeriesDescription", "SeriesNumber", "Modality", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass(frozen=True)
class SeriesHeader(Header):
    """The header of a DICOM series, with its slices in the order of the third axis."""

    frames: tuple[Frame, ...] = ()


def is_dicom(file: str | Path) -> bool:
    """Whether a file begins as DICOM files do, or its name says so; what cannot be opened, or is no file, is not."""
    file = Path(file)
    try:
        if not file.is_file():  # a pipe would wait
            return False
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM" or file.suffix.lower() in DICOM_SUFFIXES
    except OSError:
        return False


def is_series(path: str | Path) -> bool:
    """Whether a path can name a DICOM series: a folder, ``FOLDER/SERIES_UID``, or a DICOM file."""
    path = Path(path)
    return path.is_dir() or _uid(path) is not None or is_dicom(path)


def find_series(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """DICOM files by the series that they belong to.

    Files without an image (structure sets, reports, segmentations, ...) are left out with a message. A damaged file
    belongs to the series of its folder, so that it is missed there.

    Args:
        files: those that :func:`is_dicom` tells, of one search.

    Returns:
        The path that names each series, and its files. It is the folder that holds all of them if that, with the
        folders below, contains no other series.
    """
    series: dict[str | Path, list[Path]] = defaultdict(list)  # by UID; damaged files by their folder
    damaged: list[Path] = []
    others: set[str] = set()
    for file in tqdm(files, desc="DICOM files", unit="", delay=3, leave=False):
        identity = identify(file)
        if identity is None:
            damaged.append(file)
        elif identity.image:
            series[identity.series].append(file)
        else:
            others.add(f"{file.parent}: {identity.kind}")
    for other in sorted(others):
        logger.info("%s is not an image and is left out", printable(other))
    for file in damaged:
        beside = [found for found in series.values() if any(other.parent == file.parent for other in found)]
        for found in beside or [series[file.parent]]:
            found.append(file)
    folders: dict[Path, set[str | Path]] = defaultdict(set)  # the series in each folder and below
    for key, found in series.items():
        for folder in {file.parent for file in found}:
            for above in (folder, *folder.parents):
                folders[above].add(key)
    named = {}
    for key, found in series.items():
        common = Path(os.path.commonpath([file.parent for file in found]))
        alone = len(folders[common]) == 1 or not key or isinstance(key, Path)
        named[common if alone else common / _as_name(str(key))] = sorted(found)
    return dict(sorted(named.items()))


def series_files(path: str | Path) -> list[Path]:
    """The files of the series that a path names.

    Raises:
        VolumeError: there is none, or the folder holds several.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    uid = _uid(path)
    found = find_series(_dicom_files(path.parent if uid else path))
    if uid:
        for files in found.values():
            if any(_series_of(file) == uid for file in files):
                return files
        raise VolumeError(path, f"there is no DICOM series of this SeriesInstanceUID below {path.parent}")
    if path in found:
        return found[path]
    if len(found) > 1:
        names = ", ".join(f"{named} ({describe_series(files)['SeriesDescription']})" for named, files in found.items())
        raise VolumeError(path, f"holds {len(found)} DICOM series: name one of them: {names}"[:2000])
    if not found:
        raise VolumeError(path, "contains no DICOM series: a folder with one is needed")
    return next(iter(found.values()))


def series_header(path: str | Path) -> SeriesHeader:
    """Shape, affine, type and slices of a DICOM series; see :func:`digar.volumes.reading.read_header`."""
    frames = []
    for file in series_files(path):
        try:
            frames += read_frames(file)
        except VolumeError as error:
            raise VolumeError(path, f"its file {file.name} {error.reason}") from error
    frames, affine = stack(path, frames)
    return SeriesHeader(str(path), (*frames[0].size, len(frames)), 1, affine, frames[0].dtype, frames=tuple(frames))


def series_voxels(header: SeriesHeader) -> np.ndarray:
    """The voxels of a series as ``(X, Y, Z)`` float32, each slice with its own slope and intercept.

    Raises:
        VolumeError: a file's pixels cannot be decoded.
    """
    columns, rows, slices = header.shape
    volume = np.empty((slices, rows, columns), np.float32)
    places: dict[Path, dict[int, Frame]] = defaultdict(dict)
    for place, frame in enumerate(header.frames):
        places[frame.file][place] = frame
    for file, frames in places.items():
        try:
            _decode(file, frames, volume)
        except RuntimeError as error:
            syntax = pydicom.dcmread(file, stop_before_pixels=True, force=True).file_meta.get("TransferSyntaxUID", "")
            stored = f"{getattr(syntax, 'name', '')}, {syntax}".strip(", ") or "no known transfer syntax"
            reason = f"the pixels of {file.name} cannot be decoded ({stored}): store it uncompressed, or copy it again"
            raise VolumeError(header.path, reason) from error
    return volume.transpose(2, 1, 0)


def describe_series(files: Iterable[Path]) -> dict[str, str]:
    """Description, number, modality and UIDs of a series, as one of its files has them; "" where it has none."""
    file = next(file for file in files)
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*DESCRIBED])
        return {keyword: str(dataset.get(keyword, "")) for keyword in DESCRIBED}
    except UNREADABLE_DICOM:
        return dict.fromkeys(DESCRIBED, "")


class Identity(NamedTuple):
    """To which series a file belongs, and what it is."""

    series: str
    kind: str
    image: bool


def _series_of(file: Path) -> str | None:
    identity = identify(file)
    return _as_name(identity.series) if identity else None


def _as_name(uid: str) -> str:
    """A UID as the name in a path: itself, or a replacement where it is not a valid UID, as some anonymisers write."""
    return uid if UID_NAME.fullmatch(uid) else generate_uid(entropy_srcs=[uid])


def identify(file: Path) -> Identity | None:
    """What a DICOM file is; None for a damaged one."""
    state = file.stat()
    return _identified(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _identified(file: Path, size: int, changed: int) -> Identity | None:
    """:func:`identify`, once as long as size and time of change stay."""
    try:
        with open(file, "rb") as stream:
            dataset = pydicom.filereader.read_partial(
                stream, stop_when=lambda tag, vr, length: tag > 0x0020000E, force=True
            )
        uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        if not uid:
            return None
        return Identity(str(dataset.get("SeriesInstanceUID", "")), uid.name, uid.name.endswith(IMAGE_CLASSES))
    except UNREADABLE_DICOM:
        return None


def _uid(path: Path) -> str | None:
    """The UID in a path ``FOLDER/SERIES_UID``."""
    named = UID_NAME.fullmatch(path.name) and path.parent.is_dir() and not path.exists()
    return path.name if named else None


def _dicom_files(folder: Path) -> Iterator[Path]:
    """The DICOM images, and damaged files, in a folder and below, see :func:`digar.volumes.walk.walk`.

    Raises:
        VolumeError: a folder cannot be opened, so that slices may be missing.
    """
    for place, entries in walk(folder):
        if entries is None:
            raise VolumeError(folder, f"{place} cannot be opened: slices in it would be missing")
        for file in (Path(entry.path) for entry in entries):
            if file.name != "DICOMDIR" and is_dicom(file):
                identity = identify(file)
                if identity is None or identity.image:
                    yield file


def _decode(file: Path, frames: Mapping[int, Frame], volume: np.ndarray) -> None:
    """Write frames of a file into their places along the first axis of a volume ``(slices, rows, columns)``.

    Raises:
        RuntimeError: from ITK, where it cannot decode them.
    """
    import itk

    image_io = itk.GDCMImageIO.New(FileName=str(file))
    image_io.ReadImageInformation()
    done = (image_io.GetRescaleSlope(), image_io.GetRescaleIntercept())  # what ITK does to all frames of the file
    fitting = all((frame.slope, frame.intercept) == done for frame in frames.values())
    image_type = itk.Image[itk.F if fitting else itk.D, 3]
    reader = itk.ImageFileReader[image_type].New(FileName=str(file), ImageIO=image_io)
    reader.Update()
    values = itk.array_view_from_image(reader.GetOutput())
    for place, frame in frames.items():
        plane = values[frame.number]
        volume[place] = plane if fitting else np.round((plane - done[1]) / done[0]) * frame.slope + frame.intercept

"""The slices that DICOM files hold: where each lies, how its values are to be read, and the grid that they make."""

import logging
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from digar.volumes.header import SHEAR_TOLERANCE, VolumeError

logger = logging.getLogger(__name__)

UNREADABLE_DICOM = (  # what pydicom raises on damaged files
    InvalidDicomError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError,
    OverflowError, struct.error,
)  # fmt: skip
GRID_TOLERANCE = 0.1  # how far a slice may lie from its place in the grid: mm, or this share of the distance of slices
SAME_PLACE_MM = 1e-3
DIRECTION_TOLERANCE = 1e-3  # of direction cosines, among the slices of a series
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Frame:
    """A slice of a DICOM series.

    Args:
        file: that holds it.
        number: of the frame in its file, from 0.
        instance: SOPInstanceUID of the file.
        size: columns and rows.
        spacing: mm from column to column and from row to row.
        directions: cosines of the way along a row and along a column, in LPS, ``(2, 3)``.
        position: LPS mm of its first voxel, ``(3,)``.
        slope, intercept: stored value to value.
        dtype: of the stored values.
        patient: PatientID; "" where the file does not say.
    """

    file: Path
    number: int
    instance: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    directions: tuple[tuple[float, ...], tuple[float, ...]]
    position: tuple[float, ...]
    slope: float
    intercept: float
    dtype: np.dtype
    patient: str

    @property
    def name(self) -> str:
        """Of the file, and of a further frame its number."""
        return f"{self.file.name} (frame {self.number + 1})" if self.number else self.file.name

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice, ``(3,)``."""
        return np.cross(*self.directions)


def read_frames(file: Path) -> list[Frame]:
    """The slices of one file, of a multi-frame file in the order in which it stores them.

    Raises:
        VolumeError: the file is damaged, holds colours, or does not tell where a slice lies.
    """
    try:
        with open(file, "rb") as stream:
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
            _refuse_pixels(file, dataset, file.stat().st_size - stream.tell())
        groups = _functional_groups(file, dataset)
        return [_frame(file, number, _Places((*own, dataset))) for number, own in enumerate(groups)]
    except VolumeError:
        raise
    except UNREADABLE_DICOM as error:
        text = " ".join(str(error).split())[:200]
        raise VolumeError(file, f"cannot be read as DICOM ({type(error).__name__}: {text})") from error


def _refuse_pixels(file: Path, dataset: Dataset, left: int) -> None:
    """Raise a VolumeError for pixels that are no plain numbers, or fewer than there should be in ``left`` bytes."""
    if "Rows" not in dataset or "Columns" not in dataset:
        raise VolumeError(file, "contains no image, or is damaged")
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        kind = dataset.get("PhotometricInterpretation", "RGB")
        raise VolumeError(file, f"holds colours ({kind}): a volume of plain numbers is needed")
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        raise VolumeError(file, "is stored inverted, small values bright (MONOCHROME1): convert it to MONOCHROME2")
    if "ModalityLUTSequence" in dataset:
        raise VolumeError(file, "has a table of values (ModalityLUTSequence): store it with its final values")
    syntax = dataset.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    if syntax.is_deflated or syntax.is_encapsulated:
        return
    frames = int(dataset.get("NumberOfFrames") or 1)
    needed = dataset.Rows * dataset.Columns * frames * dataset.BitsAllocated // 8 + (8 if syntax.is_implicit_VR else 12)
    if left < needed:
        raise VolumeError(file, f"is cut short, {needed - left} bytes of its pixels are missing: copy it again")


def _functional_groups(file: Path, dataset: Dataset) -> list[tuple[Dataset, ...]]:
    """Of each frame, what describes it beside the data set itself: its own functional groups, and the shared ones."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if frames > 1 and len(own) != frames:
        raise VolumeError(file, f"holds {frames} frames, and the positions of {len(own)}: store them as single slices")
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    return [(item, *shared[:1]) for item in own] or [()]


@dataclass
class _Places:
    """Where an attribute of a frame may stand, the nearest first: in functional groups, or in the data set."""

    places: Sequence[Dataset]

    def get(self, group: str, keyword: str) -> Any:
        for place in self.places:
            holder = (place.get(group) or [place])[0]
            value = holder.get(keyword)
            if value is not None and value != "":
                return value
        return None

    def numbers(self, file: Path, number: int, count: int, group: str, keyword: str) -> tuple[float, ...]:
        """An attribute of ``count`` finite numbers; a VolumeError where it is missing."""
        value = self.get(group, keyword)
        found = tuple(float(v) for v in value) if value is not None else ()
        if len(found) != count or not np.isfinite(found).all():
            which = f"frame {number + 1}" if len(self.places) > 1 else "it"
            reason = f"does not say where {which} lies ({keyword} is missing): it is not part of a volume"
            raise VolumeError(file, reason)
        return found


def _frame(file: Path, number: int, places: _Places) -> Frame:
    dataset = places.places[-1]
    cosines = places.numbers(file, number, 6, "PlaneOrientationSequence", "ImageOrientationPatient")
    rows, columns = places.numbers(file, number, 2, "PixelMeasuresSequence", "PixelSpacing")  # between rows, columns
    along = np.array(cosines).reshape(2, 3)
    if np.abs(along @ along.T - np.eye(2)).max() > SHEAR_TOLERANCE:
        raise VolumeError(file, f"has the directions {cosines}, which are not unit vectors at a right angle")
    slope = places.get("PixelValueTransformationSequence", "RescaleSlope")
    intercept = places.get("PixelValueTransformationSequence", "RescaleIntercept")
    if slope is not None and float(slope) == 0:
        raise VolumeError(file, "has a RescaleSlope of 0, so that all its values are the same: correct it")
    return Frame(
        file,
        number,
        str(dataset.get("SOPInstanceUID", "")),
        (int(dataset.Columns), int(dataset.Rows)),
        (columns, rows),
        (cosines[:3], cosines[3:]),
        places.numbers(file, number, 3, "PlanePositionSequence", "ImagePositionPatient"),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        np.dtype(f"{'i' if dataset.get('PixelRepresentation') else 'u'}{max(int(dataset.BitsAllocated) // 8, 1)}"),
        str(dataset.get("PatientID", "")),
    )


def stack(path: str | Path, frames: Sequence[Frame]) -> tuple[list[Frame], np.ndarray]:
    """Slices in the order in which they lie, and the affine of their grid: voxel to RAS mm, ``(4, 4)``.

    Args:
        path: of the series, for errors.
        frames: its slices, in any order.

    Raises:
        VolumeError: the slices differ in size or direction, lie in the same place, at unequal distances, or tilted.
    """
    _refuse_mixture(path, frames)
    normal = frames[0].normal
    frames = sorted(frames, key=lambda frame: float(np.dot(frame.position, normal)))
    if len(frames) == 1:
        raise VolumeError(path, f"is a single slice ({frames[0].name}): a volume is needed")
    positions = np.array([frame.position for frame in frames])
    gaps = np.diff(positions @ normal)
    _refuse_doubles(path, frames, gaps)
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    height = float(step @ normal)
    off = positions - (positions[0] + np.arange(len(frames))[:, None] * step)
    if np.abs(off @ normal).max() > GRID_TOLERANCE * min(height, 1.0):
        worst = int(gaps.argmax())
        raise VolumeError(
            path,
            f"its DICOM slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart: a slice is missing, or series are "
            f"mixed (the widest gap is from {frames[worst].name} to {frames[worst + 1].name})",
        )
    tilt = np.degrees(np.arccos(min(height / float(np.linalg.norm(step)), 1.0)))
    if np.sin(np.radians(tilt)) > SHEAR_TOLERANCE:
        raise VolumeError(
            path, f"its DICOM slices are tilted by {tilt:.1f} degrees (gantry tilt): resample it to a right-angled grid"
        )
    sideways = np.linalg.norm(off, axis=1)
    if sideways.max() > GRID_TOLERANCE:
        worst = int(sideways.argmax())
        raise VolumeError(
            path, f"its DICOM slice {frames[worst].name} lies {sideways[worst]:.2f} mm aside of the others' line"
        )
    affine = np.eye(4)
    affine[:3, 0] = np.array(frames[0].directions[0]) * frames[0].spacing[0]
    affine[:3, 1] = np.array(frames[0].directions[1]) * frames[0].spacing[1]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return frames, LPS_TO_RAS @ affine


def _refuse_mixture(path: str | Path, frames: Sequence[Frame]) -> None:
    """Raise a VolumeError for slices of several patients, sizes, spacings or directions."""
    if len({frame.patient for frame in frames} - {""}) > 1:
        raise VolumeError(path, "its DICOM slices have one SeriesInstanceUID, but several patients (PatientID)")
    for what, values, tolerance in (
        ("sizes", [frame.size for frame in frames], 0.0),
        ("spacings", [frame.spacing for frame in frames], 1e-3 * min(frames[0].spacing)),
        ("directions", [(*frame.directions[0], *frame.directions[1]) for frame in frames], DIRECTION_TOLERANCE),
    ):
        kinds: Counter[tuple[float, ...]] = Counter()
        for value in values:
            alike = (kind for kind in kinds if np.allclose(kind, value, rtol=0, atol=tolerance))
            kinds[next(alike, value)] += 1
        if len(kinds) > 1:
            raise VolumeError(
                path,
                f"its DICOM slices have {len(kinds)} different {what} ({', '.join(map(str, kinds.values()))} slices), "
                "as those of localizers and mixed series: separate them",
            )


def _refuse_doubles(path: str | Path, frames: Sequence[Frame], gaps: np.ndarray) -> None:
    """Raise a VolumeError where slices lie in the same place: the same slice again, or several volumes."""
    same = np.flatnonzero(gaps < SAME_PLACE_MM)
    if not len(same):
        return
    first, second = frames[same[0]], frames[same[0] + 1]
    pair = f"{first.name} and {second.name}"
    _, counts = np.unique(np.cumsum(np.append(0, gaps >= SAME_PLACE_MM)), return_counts=True)
    if (first.instance, first.number) == (second.instance, second.number):
        reason = (
            f"holds duplicate slices ({len(same)}): {first.file} and {second.file} are the same one, remove the copy"
        )
    elif counts.min() == counts.max():
        reason = (
            f"holds {counts[0]} volumes in the same {len(counts)} places (such as {pair}): time points, echoes or "
            "duplicate slices; leave one of them in the folder, or convert it to a 4D NIfTI file"
        )
    else:
        reason = f"holds duplicate slices ({len(same)}): {pair} lie in the same place, remove the needless ones"
    raise VolumeError(path, reason)

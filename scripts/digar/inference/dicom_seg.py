"""Masks as DICOM SEG: a NIfTI mask in the grid of a DICOM series becomes a segmentation that refers to its slices.

The folder inference writes it with ``--dicom_seg true``; for the masks of an earlier run there is ``digar dicom-seg``.

Needs requirements-dicom.txt.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from nibabel.orientations import io_orientation, ornt_transform
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as concepts
from pydicom.uid import generate_uid
from tqdm import tqdm

from digar.data.task import Codes
from digar.inference.inputs import Case, find_cases
from digar.inference.journal import DONE, SEG_SUFFIX, Journal, Outcome, file_state
from digar.inference.report import labels_and_codes, last_run, write_reports
from digar.inference.sharing import SharedFolder
from digar.volumes.dicom import SeriesHeader, is_series, series_header
from digar.volumes.dicom_frames import LPS_TO_RAS, UNREADABLE_DICOM
from digar.volumes.files import file_hash, printable, whole_file
from digar.volumes.header import GRID_TOLERANCE_MM, Header, VolumeError, refuse_other_grid
from digar.volumes.pictures import label_colour
from digar.volumes.reading import read_header

logger = logging.getLogger(__name__)

NO_SEG = "no DICOM SEG: "  # how a warning begins
TISSUE = {"category": ("85756007", "SCT", "Tissue"), "type": ("85756007", "SCT", "Tissue")}
SERIES_NUMBER = 1000  # is added to that of the series
LONG_STRING = 64  # most letters of a description
VALID = {  # of what DICOM wants to be there, perhaps empty
    "PatientName": ".+", "PatientID": ".+", "PatientBirthDate": r"\d{8}", "PatientSex": "[MFO]", "StudyID": ".+",
    "StudyDate": r"\d{8}", "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", "AccessionNumber": ".+",
    "ReferringPhysicianName": ".+", "PositionReferenceIndicator": ".+",
}  # fmt: skip


@dataclass(frozen=True)
class Segments:
    """What a DICOM SEG says beside its pixels.

    Args:
        labels: value in the mask to name.
        codes: value in the mask to its codes, see :class:`digar.data.task.Task`.
        program: name and version of what made the mask.
        settings: hash of what decided the mask. With the series it decides the UIDs, so that the file of a repeated
            run is the same object in an archive.
    """

    labels: dict[int, str]
    codes: Codes = field(default_factory=dict)
    program: str = "DiGAR"
    settings: str = ""

    def uid(self, kind: str, header: SeriesHeader) -> str:
        """The UID of the ``series`` or the ``instance`` for the mask of a series."""
        own = [kind, self.program, self.settings]
        for value in sorted(self.labels):
            own += [str(value), self.labels[value], *(f"{kind} {code}" for kind, code in sorted(self._coded(value)))]
        return generate_uid(entropy_srcs=[*own, *sorted({frame.instance for frame in header.frames})])

    def describe(self) -> list[SegmentDescription]:
        """A description of every label: its name, its codes (or tissue), and the program as what found it."""
        name, _, version = self.program.partition(" ")
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=name, family=concepts.DCM.ArtificialIntelligence, version=version or "unknown"
        )
        descriptions = []
        for number, value in enumerate(sorted(self.labels), start=1):
            entry = {kind: CodedConcept(*code) for kind, code in self._coded(value)}
            description = SegmentDescription(
                number,
                self.labels[value][:LONG_STRING],
                entry["category"],
                entry["type"],
                "AUTOMATIC",
                algorithm_identification=algorithm,
                display_color=CIELabColor.from_rgb(*(255 * c for c in label_colour(value))),
            )
            if "modifier" in entry:
                kind = description.SegmentedPropertyTypeCodeSequence[0]
                kind.SegmentedPropertyTypeModifierCodeSequence = [entry["modifier"]]
            descriptions.append(description)
        return descriptions

    def _coded(self, value: int) -> list[tuple[str, tuple[str, ...]]]:
        return [(kind, tuple(code)) for kind, code in self.codes.get(value, TISSUE).items()]


def make_dicom_seg(header: SeriesHeader, mask: str | Path, segments: Segments) -> Segmentation:
    """A mask as a binary DICOM SEG, not written yet.

    Each label is a segment, in the order of the values and numbered from 1; one that the mask does not hold keeps its
    segment, without frames. The frames lie on the right-angled grid next to the slices.

    Args:
        header: of the series that was segmented.
        mask: NIfTI file of label values in the grid of the series; its axes may be in another order or reversed.
        segments: names and codes of the labels.

    Raises:
        VolumeError: the mask lies in another grid or holds a value without name, or no SEG can refer to the series.
    """
    values = on_grid(mask, header)
    unknown = sorted(set(np.unique(values).tolist()) - {0, *segments.labels})
    if unknown:
        raise VolumeError(mask, f"holds the values {unknown}, which have no name; there are {segments.labels}")
    numbers = np.zeros(max(segments.labels) + 1, np.uint16)
    numbers[sorted(segments.labels)] = np.arange(1, len(segments.labels) + 1)
    planes = numbers[values].transpose(2, 1, 0)  # (columns, rows, slices) to (slices, rows, columns)
    sources = _sources(header)
    if len(sources) == 1:
        planes = planes[np.argsort([frame.number for frame in header.frames])]
    name, _, version = segments.program.partition(" ")
    try:
        segmentation = Segmentation(
            source_images=sources,
            pixel_array=np.ascontiguousarray(planes),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=segments.describe(),
            series_instance_uid=segments.uid("series", header),
            series_number=SERIES_NUMBER + max(int(sources[0].get("SeriesNumber") or 0), 0),
            series_description=f"{name}: {sources[0].get('SeriesDescription', '')}"[:LONG_STRING],
            sop_instance_uid=segments.uid("instance", header),
            instance_number=1,
            content_label="SEGMENTATION",
            manufacturer=name,
            manufacturer_model_name=name,
            software_versions=version or "unknown",
            device_serial_number=version or "unknown",
            specific_character_set="ISO_IR 192",
        )
    except UNREADABLE_DICOM as error:
        raise VolumeError(header.path, f"cannot be referred to ({type(error).__name__}: {error})") from error
    segmentation.ContentCreatorName = None
    return segmentation


def _sources(header: SeriesHeader) -> list[Dataset]:
    """The files of a series without pixels, in the order of its slices, moved onto the nearest right-angled grid.

    What DICOM wants to be there but an anonymiser may have taken out, or what is not valid, becomes empty.

    Raises:
        VolumeError: they are several multi-frame files, do not lie on such a grid, or lack a UID.
    """
    files = list(dict.fromkeys(frame.file for frame in header.frames))
    if 1 < len(files) < len(header.frames):
        raise VolumeError(header.path, "is spread over several multi-frame files: no DICOM SEG can refer to it")
    sources: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID"):
        if not all(source.get(keyword) for source in sources):
            raise VolumeError(header.path, f"has no {keyword}, to which a DICOM SEG must refer")
    if len({source.SOPInstanceUID for source in sources}) < len(sources):
        raise VolumeError(header.path, "has slices with the same SOPInstanceUID: no DICOM SEG can refer to them")
    for keyword, valid in VALID.items():
        if not re.fullmatch(valid, str(sources[0].get(keyword) or "")):
            setattr(sources[0], keyword, None)
    lps = LPS_TO_RAS @ header.affine
    normal = np.cross(lps[:3, 0], lps[:3, 1])
    normal /= np.linalg.norm(normal)
    height = float(lps[:3, 2] @ normal)
    middle = (header.shape[2] - 1) / 2
    positions = lps[:3, 3] + middle * lps[:3, 2] + np.outer(np.arange(header.shape[2]) - middle, height * normal)
    aside = np.linalg.norm(positions[0] - lps[:3, 3])
    if aside > GRID_TOLERANCE_MM / 2:
        raise VolumeError(
            header.path,
            f"its slices are tilted, the last lies {2 * aside:.2f} mm aside of the first: readers of DICOM SEG take "
            "right-angled grids alone; its NIfTI mask is right",
        )
    directions = (lps[:3, :2] / header.spacing[:2]).T.ravel()
    measures = {
        "PixelSpacing": [float(header.spacing[1]), float(header.spacing[0])],
        "SliceThickness": height,
        "SpacingBetweenSlices": height,
    }
    if len(files) == 1:
        (shared,) = sources[0].SharedFunctionalGroupsSequence[:1] or [Dataset()]
        shared.PlaneOrientationSequence = [_dataset(ImageOrientationPatient=directions.tolist())]
        shared.PixelMeasuresSequence = [_dataset(**measures)]
        sources[0].SharedFunctionalGroupsSequence = [shared]
        for frame, position in zip(header.frames, positions, strict=True):
            group = sources[0].PerFrameFunctionalGroupsSequence[frame.number]
            group.PlanePositionSequence = [_dataset(ImagePositionPatient=position.tolist())]
    else:
        for source, position in zip(sources, positions, strict=True):
            place = {"ImagePositionPatient": position.tolist(), "ImageOrientationPatient": directions.tolist()}
            source.update(_dataset(**measures, **place))
    return sources


def _dataset(**elements: Any) -> Dataset:
    """A data set; numbers are written in the 16 letters that DICOM has for them."""
    dataset = Dataset()
    for keyword, value in elements.items():
        numbers = value if isinstance(value, list) else [value]
        texts = [pydicom.valuerep.format_number_as_ds(number) for number in numbers]
        setattr(dataset, keyword, texts if isinstance(value, list) else texts[0])
    return dataset


def on_grid(mask: str | Path, grid: Header) -> np.ndarray:
    """The values of a NIfTI mask along the axes of a grid, ``(X, Y, Z)`` uint16.

    Raises:
        VolumeError: the file is no mask, or lies in another grid, beyond the order and direction of its axes.
    """
    own = read_header(mask)  # names what is wrong with a file that cannot be read
    image = nib.load(mask)
    if len(image.shape) != 3:
        raise VolumeError(mask, "holds several masks: a DICOM SEG takes one")
    image = image.as_reoriented(ornt_transform(io_orientation(own.affine), io_orientation(grid.affine)))
    turned = replace(own, shape=image.shape, affine=image.affine)
    refuse_other_grid(turned, grid, "the series", "give the mask of this series")
    values = np.asanyarray(image.dataobj)
    if not np.array_equal(values, values.astype(np.uint16)):
        raise VolumeError(mask, "holds other values than whole numbers from 0 to 65535")
    return values.astype(np.uint16)


# A folder run


def add_dicom_seg(journal: Journal, case: Case, outcome: Outcome) -> Outcome:
    """Write the DICOM SEG beside the finished mask of a DICOM series, unless it is there, and note it in the journal.

    If none can be made, the reason becomes a warning of the outcome, which begins with ``NO_SEG``. Other images stay
    as they are.

    Args:
        journal: of the output folder.
        case, outcome: of the image.

    Raises:
        OSError: the journal cannot be written.
    """
    series, mask = case["image"], journal.folder / case["mask"]
    if outcome.status != DONE or not isinstance(series, str) or not is_series(series):
        return outcome
    target = mask.with_name(mask.name.removesuffix(".nii.gz") + SEG_SUFFIX)
    own = target.is_file() and outcome.beside.get(target.name) == file_state(target)
    try:
        found = file_hash(mask)
        settings = outcome.run if found == outcome.mask_hash and not outcome.kept else found
        about = journal.runs[outcome.run]
        segments = Segments(*labels_and_codes(about), about["facts"]["bundle"], settings)
        header = series_header(series)
        if own and pydicom.dcmread(target, stop_before_pixels=True).SOPInstanceUID == segments.uid("instance", header):
            return outcome
        if os.path.lexists(target) and not own:
            raise VolumeError(target, f"{target.name} is there, but was not written by this program: move it away")
        segmentation = make_dicom_seg(header, mask, segments)
        with whole_file(target) as temporary:
            segmentation.save_as(temporary)
            _note(journal, outcome, {target.name: file_state(temporary)})
    except (VolumeError, *UNREADABLE_DICOM) as error:
        reason = error.reason if isinstance(error, VolumeError) else str(error)
        logger.warning("%s: %s%s", printable(case["name"]), NO_SEG, reason)
        if own:
            target.unlink(missing_ok=True)
        _note(journal, outcome, {}, [NO_SEG + reason])
    return outcome


def _note(journal: Journal, outcome: Outcome, seg: dict[str, list[int]], warnings: Sequence[str] = ()) -> None:
    """Note in the journal which DICOM SEG an image has, before that gets its name, or why it has none."""
    others = {name: state for name, state in outcome.beside.items() if not name.endswith(SEG_SUFFIX)}
    outcome.beside = others | seg
    outcome.warnings = [word for word in outcome.warnings if not word.startswith(NO_SEG)] + list(warnings)
    outcome.ended = time.time()
    journal.add(outcome)


def write_folder(images: Path, masks: Path) -> dict[str, str]:
    """Write the DICOM SEG of every series that a folder inference took, and the reports anew.

    Args:
        images, masks: ``dataset_dir`` and ``output_dir`` of the inference.

    Returns:
        The series that have none, and why.

    Raises:
        FileNotFoundError: there is no DICOM series among the images, or no journal among the masks.
    """
    found = [case for case in find_cases(images, masks) if is_series(case["image"])]
    if not found:
        raise FileNotFoundError(f"{images} contains no DICOM series: only their masks become DICOM SEG")
    run = last_run(Journal(masks))
    failed = {}
    with contextlib.ExitStack() as stack:
        folder = SharedFolder(masks, run)
        stack.callback(folder.leave)
        journal = Journal(masks, folder.journal_number)
        stack.callback(journal.close)
        for case in tqdm(found, desc="DICOM SEG", unit="series"):
            outcome = journal.former(case["name"])
            if outcome is None or outcome.status != DONE or not (masks / case["mask"]).is_file():
                failed[case["name"]] = f"{NO_SEG}it has no mask: run the inference first"
                continue
            outcome = add_dicom_seg(journal, case, outcome)
            if words := [word for word in outcome.warnings if word.startswith(NO_SEG)]:
                failed[case["name"]] = words[0]
        write_reports(journal, run)
    return failed

"""Masks as DICOM SEG: a NIfTI mask in the grid of a DICOM series becomes a segmentation that refers to its slices.

The folder inference writes it with ``--dicom_seg true``. For masks of an earlier run, corrected ones among them:

    python -m digar.inference.dicom_seg --images DATA/images --masks OUT

Needs requirements-dicom.txt.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

from digar.data.task import find_task
from digar.inference.inputs import find_cases
from digar.volumes.dicom import SeriesHeader, is_series, series_header
from digar.volumes.dicom_frames import LPS_TO_RAS, UNREADABLE_DICOM
from digar.volumes.files import file_hash, read_json, whole_file
from digar.volumes.header import GRID_TOLERANCE_MM, Header, VolumeError, refuse_other_grid
from digar.volumes.pictures import label_colour
from digar.volumes.reading import read_header

logger = logging.getLogger(__name__)

Codes = Mapping[int, Mapping[str, Sequence[str]]]
TISSUE = {"category": ("85756007", "SCT", "Tissue"), "type": ("85756007", "SCT", "Tissue")}
SERIES_NUMBER = 1000  # is added to that of the series
METADATA = Path(__file__).parents[3] / "configs/metadata.json"
LONG_STRING = 64  # most letters of a description
VALID = {  # of what DICOM wants to be there, perhaps empty
    "PatientName": ".+", "PatientID": ".+", "PatientBirthDate": r"\d{8}", "PatientSex": "[MFO]", "StudyID": ".+",
    "StudyDate": r"\d{8}", "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", "AccessionNumber": ".+",
    "ReferringPhysicianName": ".+", "PositionReferenceIndicator": ".+",
}  # fmt: skip


def write_dicom_seg(
    series: str | Path,
    mask: str | Path,
    target: str | Path,
    labels: Mapping[int, str],
    codes: Codes,
    metadata: Mapping[str, Any],
    settings: str,
) -> None:
    """Write a mask as a binary DICOM SEG.

    Each label is a segment, in the order of the values and numbered from 1; one that the mask does not hold keeps its
    segment, without frames. The frames lie on the right-angled grid next to the slices.

    Args:
        series: that was segmented, see :mod:`digar.volumes.dicom`.
        mask: NIfTI file of label values in the grid of the series; its axes may be in another order or reversed.
        target: the file to write.
        labels: value in the mask to name.
        codes: value in the mask to ``category``, ``type`` and perhaps ``modifier``, each as value, scheme and meaning.
        metadata: of the bundle: ``name``, ``version``, ``authors``.
        settings: hash of what decided the mask. With the series it decides the UIDs, so that the file of a repeated
            run is the same object in an archive.

    Raises:
        VolumeError: the series or the mask cannot be used, the mask lies in another grid or holds a value without
            name, or the series lacks what a SEG must refer to.
    """
    header = series_header(series)
    values = on_grid(mask, header)
    unknown = sorted(set(np.unique(values).tolist()) - {0, *labels})
    if unknown:
        raise VolumeError(mask, f"holds the values {unknown}, which have no name; there are {dict(labels)}")
    numbers = np.zeros(max(labels) + 1, np.uint16)
    numbers[sorted(labels)] = np.arange(1, len(labels) + 1)
    planes = numbers[values].transpose(2, 1, 0)  # (columns, rows, slices) to (slices, rows, columns)
    try:
        sources = _sources(header)
        if len(sources) == 1:
            planes = planes[np.argsort([frame.number for frame in header.frames])]
        what = [settings, repr(sorted(labels.items())), repr([codes.get(value) for value in sorted(labels)])]
        what += sorted({frame.instance for frame in header.frames})
        segmentation = Segmentation(
            source_images=sources,
            pixel_array=np.ascontiguousarray(planes),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=describe_segments(labels, codes, metadata),
            series_instance_uid=generate_uid(entropy_srcs=["series", *what]),
            series_number=SERIES_NUMBER + max(int(sources[0].get("SeriesNumber") or 0), 0),
            series_description=f"{metadata['name']}: {sources[0].get('SeriesDescription', '')}"[:LONG_STRING],
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *what]),
            instance_number=1,
            content_label="SEGMENTATION",
            manufacturer=metadata["authors"],
            manufacturer_model_name=metadata["name"],
            software_versions=metadata["version"],
            device_serial_number=metadata["version"],
            specific_character_set="ISO_IR 192",
        )
        segmentation.ContentCreatorName = None
        with whole_file(target) as temporary:
            segmentation.save_as(temporary)
    except (VolumeError, OSError):
        raise
    except UNREADABLE_DICOM as error:
        raise VolumeError(series, f"no DICOM SEG can refer to it ({type(error).__name__}: {error})") from error


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


def describe_segments(labels: Mapping[int, str], codes: Codes, metadata: Mapping[str, Any]) -> list[SegmentDescription]:
    """A description of every label: its name, its codes, and this program as what found it.

    A label without codes is called tissue; see :func:`write_dicom_seg` for the arguments.
    """
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=metadata["name"], family=concepts.DCM.ArtificialIntelligence, version=metadata["version"]
    )
    descriptions = []
    for number, value in enumerate(sorted(labels), start=1):
        entry = {key: CodedConcept(*code) for key, code in (codes.get(value) or TISSUE).items()}
        description = SegmentDescription(
            number,
            labels[value][:LONG_STRING],
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


def write_folder(images: Path, masks: Path, codes: Codes, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Write a DICOM SEG beside the mask of every DICOM series that a folder inference took.

    Args:
        images, masks: ``dataset_dir`` and ``output_dir`` of the inference; its ``labels.json`` names the labels.
        codes, metadata: see :func:`write_dicom_seg`.

    Returns:
        The series that got none, and why.

    Raises:
        FileNotFoundError: there is no DICOM series among the images.
    """
    found = [case for case in find_cases(images, masks) if is_series(case["image"])]
    if not found:
        raise FileNotFoundError(f"{images} holds no DICOM series: only their masks become DICOM SEG")
    names = read_json(masks / "labels.json", dict)
    labels = {int(value): name for value, name in names.items() if int(value)}
    failed = {}
    for case in tqdm(found, desc="DICOM SEG", unit="series"):
        mask = masks / case["mask"]
        target = mask.with_name(mask.name.removesuffix(".nii.gz") + ".dcm")
        try:
            if not mask.is_file():
                raise VolumeError(case["image"], f"has no mask {mask}: run the inference first")
            write_dicom_seg(case["image"], mask, target, labels, codes, metadata, file_hash(mask))
        except (VolumeError, OSError) as error:
            failed[case["name"]] = str(error)
            logger.warning("%s: no DICOM SEG: %s", case["name"], error)
        else:
            logger.info("written to %s", target)
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the masks of DICOM series as DICOM SEG.")
    parser.add_argument("--images", required=True, type=Path, help="dataset_dir of the inference")
    parser.add_argument("--masks", required=True, type=Path, help="output_dir of the inference")
    parser.add_argument("--task", type=Path, help="task file or model's folder, whose codes the segments bear")
    arguments = parser.parse_args(argv)
    codes = find_task(arguments.task).codes if arguments.task else {}
    failed = write_folder(arguments.images, arguments.masks, codes, read_json(METADATA, dict))
    for name, reason in failed.items():
        print(f"{name}: no DICOM SEG: {reason}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()

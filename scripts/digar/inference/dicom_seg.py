"""Masks as DICOM SEG: a NIfTI mask in the grid of a DICOM series becomes a segmentation that refers to its slices.

After the folder inference, for every DICOM series among its images, beside the mask:

    python -m digar.inference.dicom_seg --images DATA/images --masks OUT

Needs requirements-dicom.txt.
"""

import argparse
import json
from collections.abc import Sequence
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
from pydicom.sr.codedict import codes
from tqdm import tqdm

from digar.inference.inputs import find_cases
from digar.volumes.dicom import series_header
from digar.volumes.files import whole_file
from digar.volumes.header import Header, VolumeError, refuse_other_grid
from digar.volumes.pictures import label_colour
from digar.volumes.reading import read_header

METADATA = Path(__file__).parents[3] / "configs/metadata.json"
SERIES_NUMBER = 1000  # of the segmentation in its study, behind the scanner's


def write_dicom_seg(series: str | Path, mask: str | Path, target: str | Path, metadata: dict[str, Any]) -> None:
    """Write a mask as a binary DICOM SEG with a segment per class.

    A class that the mask does not hold keeps its segment, without frames.

    Args:
        series: folder of the DICOM series that was segmented, a slice per file.
        mask: NIfTI file of class numbers in the grid of the series; its axes may be in another order or reversed.
        target: the file to write.
        metadata: of the bundle: class names (``network_data_format``), codes (``segments``), version.

    Raises:
        ValueError: the series or the mask cannot be used, the mask lies in another grid or holds a value without name.
    """
    header = series_header(series)
    slices = [pydicom.dcmread(frame.file) for frame in header.frames]  # in the order of the header's third axis
    if any(frame.number for frame in header.frames):
        raise VolumeError(series, "holds several slices in one file: write it as a series of single slices")
    labels = on_grid(mask, header)
    descriptions = describe_segments(metadata)
    unknown = sorted(set(np.unique(labels).tolist()) - set(range(len(descriptions) + 1)))
    if unknown:
        raise VolumeError(mask, f"holds the values {unknown}, the metadata name classes 0 to {len(descriptions)}")
    segmentation = Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(labels.transpose(2, 1, 0)),  # (columns, rows, slices) to (slices, rows, ...)
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        series_description=f"{metadata['name']} segmentation",
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=metadata["authors"],
        manufacturer_model_name=metadata["name"],
        software_versions=metadata["version"],
        device_serial_number=metadata["version"],
    )
    with whole_file(target) as temporary:
        segmentation.save_as(temporary)


def on_grid(mask: str | Path, grid: Header) -> np.ndarray:
    """The class numbers of a NIfTI mask along the axes of a grid, ``(X, Y, Z)`` uint8.

    Raises:
        VolumeError: the file is no mask, or lies in another grid, beyond the order and direction of its axes.
    """
    own = read_header(mask)  # names what is wrong with a file that cannot be read
    image = nib.load(mask)
    image = image.as_reoriented(ornt_transform(io_orientation(own.affine), io_orientation(grid.affine)))
    turned = replace(own, shape=image.shape, affine=image.affine)
    refuse_other_grid(turned, grid, "the series", "give the mask of this series")
    values = np.asanyarray(image.dataobj)
    if not np.array_equal(values, values.astype(np.uint8)):
        raise VolumeError(mask, "holds other values than class numbers from 0 to 255")
    return values.astype(np.uint8)


def describe_segments(metadata: dict[str, Any]) -> list[SegmentDescription]:
    """A description of every class but the background: its name, its codes, and this program as what found it.

    Names are those of the first output's ``channel_def``. ``segments`` holds category, type and perhaps a modifier
    per class, each as value, scheme and meaning; a class without an entry is called tissue.
    """
    output = next(iter(metadata["network_data_format"]["outputs"].values()))
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=metadata["name"], family=codes.DCM.ArtificialIntelligence, version=metadata["version"]
    )
    tissue = {"category": ["85756007", "SCT", "Tissue"], "type": ["85756007", "SCT", "Tissue"]}
    descriptions = []
    for number, name in enumerate(list(output["channel_def"].values())[1:], start=1):
        entry = {key: _coded(*code) for key, code in metadata.get("segments", {}).get(str(number), tissue).items()}
        description = SegmentDescription(
            number,
            name,
            entry["category"],
            entry["type"],
            "AUTOMATIC",
            algorithm_identification=algorithm,
            display_color=CIELabColor.from_rgb(*(255 * c for c in label_colour(number))),
        )
        if "modifier" in entry:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [entry["modifier"]]
        descriptions.append(description)
    return descriptions


def _coded(value: str, scheme: str, meaning: str) -> CodedConcept:
    return CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


def write_folder(images: Path, masks: Path, metadata: dict[str, Any]) -> list[Path]:
    """Write a DICOM SEG beside the mask of every DICOM series that a folder inference took; see its arguments.

    Returns:
        The written files: a mask's name with the ending ``.dcm``.

    Raises:
        FileNotFoundError: there is no DICOM series among the images, or the mask of one is missing.
        ValueError: see :func:`write_dicom_seg`.
    """
    found = [case for case in find_cases(images, masks) if Path(case["image"]).is_dir()]
    if not found:
        raise FileNotFoundError(f"{images} holds no DICOM series: only their masks become DICOM SEG")
    written = []
    for case in tqdm(found, desc="DICOM SEG", unit="series"):
        mask = masks / case["mask"]
        if not mask.is_file():
            raise FileNotFoundError(f"there is no mask {mask} of the series {case['image']}: run inference.json first")
        written.append(mask.with_name(mask.name.removesuffix(".nii.gz") + ".dcm"))
        write_dicom_seg(case["image"], mask, written[-1], metadata)
    return written


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the masks of DICOM series as DICOM SEG.")
    parser.add_argument("--images", required=True, type=Path, help="dataset_dir of the inference")
    parser.add_argument("--masks", required=True, type=Path, help="output_dir of the inference")
    parser.add_argument("--metadata", type=Path, default=METADATA, help="names and codes (default: the bundle's)")
    arguments = parser.parse_args(argv)
    metadata = json.loads(arguments.metadata.read_text(encoding="utf-8"))
    for file in write_folder(arguments.images, arguments.masks, metadata):
        print(f"written to {file}")


if __name__ == "__main__":
    main()

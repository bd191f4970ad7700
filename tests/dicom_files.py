"""DICOM files that tests need: series of single slices, and multi-frame files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0])
Edit = Callable[[Dataset, int], None]


def write_series(
    folder: Path,
    values: np.ndarray,
    affine: np.ndarray,
    series: str | None = None,
    edit: Edit | None = None,
    name: str = "{:04d}.dcm",
    sop_class: UID = MRImageStorage,
) -> list[Path]:
    """A volume ``(X, Y, Z)`` int16 as a series, a slice per file along its third axis; the names do not tell the order.

    Args:
        affine: voxel to RAS mm.
        series: SeriesInstanceUID; a new one by default.
        edit: changes a slice's data set before it is written; takes its number too.
        name: of the files, with a place for a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spacing, directions = _geometry(affine)
    series, study, frame_of_reference = series or generate_uid(), generate_uid(), generate_uid()
    files = []
    for k in range(values.shape[2]):
        slice_ = _file(sop_class)
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = (
            study,
            series,
            frame_of_reference,
        )
        slice_.InstanceNumber = k + 1
        slice_.ImagePositionPatient = _position(affine, k)
        slice_.ImageOrientationPatient = directions
        slice_.PixelSpacing, slice_.SliceThickness = [f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"], f"{spacing[2]:.6f}"
        _set_pixels(slice_, values[:, :, k].T)
        if edit:
            edit(slice_, k)
        files.append(folder / name.format(k * 7919 % 1009))
        slice_.save_as(files[-1], enforce_file_format=True)
    return files


def write_multiframe(
    file: Path,
    values: np.ndarray,
    affine: np.ndarray,
    order: Sequence[int] | None = None,
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """A volume ``(X, Y, Z)`` int16 as one Enhanced MR file, whose frames are the slices of ``order``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    spacing, directions = _geometry(affine)
    order = range(values.shape[2]) if order is None else order
    dataset = _file(EnhancedMRImageStorage)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
        generate_uid() for _ in range(3)
    )
    dataset.InstanceNumber, dataset.NumberOfFrames = 1, len(order)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_dataset(ImageOrientationPatient=directions)]
    shared.PixelMeasuresSequence = [
        _dataset(PixelSpacing=[f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"], SliceThickness=f"{spacing[2]:.6f}")
    ]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = [_dataset(ImagePositionPatient=_position(affine, k))]
        frame.FrameContentSequence = [
            _dataset(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1])
        ]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    _set_pixels(dataset, np.stack([values[:, :, k].T for k in order]))
    if edit:
        edit(dataset)
    dataset.save_as(file, enforce_file_format=True)
    return file


def _file(sop_class: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Phantom^", "3", "", "O"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200101", "120000", "1"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
    dataset.Manufacturer, dataset.Modality, dataset.SeriesNumber = "", "MR", 1
    dataset.SeriesDescription = "T1 phantom"
    return dataset


def _set_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    """Pixels ``(..., rows, columns)`` int16."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.ascontiguousarray(pixels.astype("<i2")).tobytes()


def _geometry(affine: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Spacing in mm, and ImageOrientationPatient."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = LPS @ affine[:3, :3] / spacing
    return spacing, [f"{x:.10f}" for x in (*directions[:, 0], *directions[:, 1])]


def _position(affine: np.ndarray, k: int) -> list[str]:
    return [f"{x:.6f}" for x in LPS @ (affine @ [0, 0, k, 1])[:3]]


def _dataset(**elements: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset

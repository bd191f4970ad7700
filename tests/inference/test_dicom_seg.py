"""Masks become DICOM SEG in the place of their series, whatever its orientation: synthetic series of phantoms."""

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from digar.data.phantoms import Study, make_study
from digar.inference.dicom_seg import main, write_dicom_seg, write_folder
from digar.volumes.reading import VolumeError
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial import cKDTree

from tests.conftest import ROOT

METADATA = json.loads((ROOT / "configs/metadata.json").read_text())
LPS = np.diag([-1.0, -1.0, 1.0])


def is_oblique(study: Study) -> bool:
    return bool(np.sort(np.abs(study.affine[:3, :3]), axis=0)[1].max() > 0.02)


@pytest.fixture(scope="module", params=["along the axes", "oblique"])
def study(request: pytest.FixtureRequest) -> Study:
    """A phantom with two labels, tilted off the patient's axes or not."""
    candidates = (make_study(3, index) for index in itertools.count())
    image, label, affine = next(s for s in candidates if is_oblique(s) == (request.param == "oblique"))
    return Study(image, np.where(label <= 2, label, 0).astype(np.uint8), affine)


def write_series(folder: Path, study: Study) -> Path:
    """A study as an MR series, a slice per file along its third axis; the names do not tell the order."""
    folder.mkdir()
    spacing = np.linalg.norm(study.affine[:3, :3], axis=0)
    directions = LPS @ study.affine[:3, :3] / spacing
    study_uid, series_uid, frame_uid = generate_uid(), generate_uid(), generate_uid()
    for k in range(study.image.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study_uid, series_uid, frame_uid
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate, slice_.PatientSex = "Phantom^", "3", "", "O"
        slice_.StudyDate, slice_.StudyTime, slice_.StudyID = "20200101", "120000", "1"
        slice_.AccessionNumber = slice_.ReferringPhysicianName = slice_.PositionReferenceIndicator = ""
        slice_.Manufacturer, slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "", "MR", 1, k + 1
        slice_.ImagePositionPatient = [f"{x:.6f}" for x in LPS @ (study.affine @ [0, 0, k, 1])[:3]]
        slice_.ImageOrientationPatient = [f"{x:.10f}" for x in (*directions[:, 0], *directions[:, 1])]
        slice_.PixelSpacing, slice_.SliceThickness = [f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"], f"{spacing[2]:.6f}"
        slice_.Columns, slice_.Rows = study.image.shape[:2]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = np.ascontiguousarray(study.image[:, :, k].T).tobytes()
        slice_.save_as(folder / f"{k * 7919 % 1009:04d}.dcm", enforce_file_format=True)
    return folder


def write_mask(file: Path, label: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(label, affine), file)
    return file


def points_in_file(file: Path, segment: int) -> np.ndarray:
    """RAS mm of every voxel of a segment, ``(N, 3)``, from the positions that the frames of the file state."""
    dataset = pydicom.dcmread(file)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    row_spacing, column_spacing = (float(x) for x in shared.PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for pixels, frame in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            row, column = np.nonzero(pixels)
            steps = np.outer(column * column_spacing, orientation[0]) + np.outer(row * row_spacing, orientation[1])
            found.append((position + steps) @ LPS)
    return np.concatenate(found)


def points_in_mask(study: Study, label: int) -> np.ndarray:
    return np.argwhere(study.label == label) @ study.affine[:3, :3].T + study.affine[:3, 3]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["axes as stored", "axes in another order"])
def test_every_voxel_of_a_segment_lies_where_the_mask_has_it(study: Study, axes: tuple, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", study)
    turned = study.affine.copy()
    turned[:3, :3] = study.affine[:3, list(axes)]
    mask = write_mask(tmp_path / "mask.nii.gz", study.label.transpose(axes), turned)
    write_dicom_seg(series, mask, tmp_path / "seg.dcm", METADATA)
    for label in (1, 2):
        written, expected = points_in_file(tmp_path / "seg.dcm", label), points_in_mask(study, label)
        assert len(written) == len(expected) > 100
        distance, nearest = cKDTree(expected).query(written)
        assert distance.max() < 0.01
        assert len(set(nearest)) == len(expected)
    assert not list(tmp_path.rglob("*.tmp*"))


def test_segments_bear_the_names_and_codes_of_the_metadata(study: Study, tmp_path: Path) -> None:
    (tmp_path / "images/ward").mkdir(parents=True)
    (tmp_path / "masks/ward").mkdir(parents=True)
    series = write_series(tmp_path / "images/ward/series", study)
    write_mask(tmp_path / "images/other.nii.gz", study.label, study.affine)
    write_mask(tmp_path / "masks/ward/series_mask.nii.gz", study.label, study.affine)
    main(["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")])
    assert [file.name for file in (tmp_path / "masks").rglob("*.dcm")] == ["series_mask.dcm"]
    dataset = pydicom.dcmread(tmp_path / "masks/ward/series_mask.dcm")
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == ["anterior", "posterior"]
    for segment, modifier in zip(dataset.SegmentSequence, ("Anterior", "Posterior"), strict=True):
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodeMeaning) == ("5366008", "Hippocampus")
        assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == modifier
        assert segment.SegmentAlgorithmName == "DiGAR"
    first = pydicom.dcmread(next(series.iterdir()))
    for key in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert dataset[key].value == first[key].value
    assert dataset.SeriesInstanceUID != first.SeriesInstanceUID


def test_a_class_without_codes_is_tissue_and_an_absent_one_keeps_its_segment(study: Study, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", study)
    mask = write_mask(tmp_path / "mask.nii.gz", np.where(study.label == 2, 2, 0).astype(np.uint8), study.affine)
    metadata = {**METADATA, "segments": {}}
    write_dicom_seg(series, mask, tmp_path / "seg.dcm", metadata)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in dataset.SegmentSequence]
    assert kinds == ["Tissue", "Tissue"]
    frames = dataset.PerFrameFunctionalGroupsSequence
    assert {frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber for frame in frames} == {2}


def test_a_series_without_a_mask_and_a_folder_without_series_are_refused(study: Study, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_mask(tmp_path / "images/other.nii.gz", study.label, study.affine)
    with pytest.raises(FileNotFoundError, match="images holds no DICOM series"):
        write_folder(tmp_path / "images", tmp_path / "masks", METADATA)
    write_series(tmp_path / "images/series", study)
    with pytest.raises(FileNotFoundError, match=r"no mask .*series_mask.nii.gz .*: run inference.json first"):
        write_folder(tmp_path / "images", tmp_path / "masks", METADATA)


def test_an_empty_mask_is_written(study: Study, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", study)
    mask = write_mask(tmp_path / "mask.nii.gz", np.zeros_like(study.label), study.affine)
    write_dicom_seg(series, mask, tmp_path / "seg.dcm", METADATA)
    assert not pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.any()


def test_a_mask_of_another_grid_is_refused_with_both_paths(study: Study, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", study)
    moved = study.affine.copy()
    moved[0, 3] += 5
    mask = write_mask(tmp_path / "mask.nii.gz", study.label, moved)
    with pytest.raises(
        VolumeError, match=r"mask.nii.gz: lies 5 mm apart from the series .*: give the mask of this series"
    ):
        write_dicom_seg(series, mask, tmp_path / "seg.dcm", METADATA)
    assert not list(tmp_path.glob("*seg.dcm*"))


def test_a_value_without_a_name_is_refused(study: Study, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", study)
    mask = write_mask(tmp_path / "mask.nii.gz", study.label * 3, study.affine)
    with pytest.raises(VolumeError, match=r"mask.nii.gz: holds the values \[3, 6\], the metadata name classes 0 to 2"):
        write_dicom_seg(series, mask, tmp_path / "seg.dcm", METADATA)

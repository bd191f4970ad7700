"""Masks become DICOM SEG in the place of their series, whatever its orientation, as other programs read them."""

import csv
import shutil
import subprocess
import sysconfig
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from digar.cli.app import app
from digar.inference.dicom_seg import Segments, make_dicom_seg, write_folder
from digar.volumes.dicom import series_header
from digar.volumes.header import VolumeError
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from scipy.spatial import cKDTree
from typer.testing import CliRunner

from tests.dicom_files import LPS, write_multiframe, write_series
from tests.inference.standins import make_evaluator

LABELS = {1: "anterior", 2: "posterior"}
CODES = {
    1: {
        "category": ["91723000", "SCT", "Anatomical Structure"],
        "type": ["5366008", "SCT", "Hippocampus"],
        "modifier": ["255549009", "SCT", "Anterior"],
    }
}
IMAGE = np.random.default_rng(0).integers(0, 900, (12, 10, 8)).astype(np.int16)
MASK = np.zeros(IMAGE.shape, np.uint8)
MASK[2:6, 3:8, 1:5], MASK[6:9, 3:5, 4:7] = 1, 2
SEGIMAGE2ITKIMAGE = shutil.which("segimage2itkimage", path=sysconfig.get_path("scripts"))
DCIODVFY = shutil.which("dciodvfy")


def affine_of(axes: tuple = (0, 1, 2), signs: tuple = (1, 1, 1), angle: float = 0.0) -> np.ndarray:
    """Voxel to RAS mm: the array's axes run along these of the patient, with these signs, turned by an angle."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, list(axes)] * signs) * (0.9, 1.1, 2.0)
    affine[:3, 3] = -30, 12, 7
    return affine


AFFINE = affine_of(angle=0.4)


def write(folder: Path, target: Path, mask=MASK, affine=AFFINE, labels=LABELS, codes=CODES, settings="one") -> Dataset:
    """Write the SEG of a series and read it."""
    nib.save(nib.Nifti1Image(mask, affine), target.with_suffix(".nii.gz"))
    segments = Segments(labels, codes, "DiGAR 1.2.3", settings)
    make_dicom_seg(series_header(folder), target.with_suffix(".nii.gz"), segments).save_as(target)
    return pydicom.dcmread(target)


def points(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """RAS mm of the voxels of a mask, ``(N, 3)``."""
    return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]


def assert_same_places(found: np.ndarray, expected: np.ndarray, tolerance: float = 0.01) -> None:
    assert len(found) == len(expected) > 0
    distance, nearest = cKDTree(expected).query(found)
    assert distance.max() < tolerance
    assert len(set(nearest)) == len(expected)


def points_in_file(dataset: Dataset, segment: int) -> np.ndarray:
    """RAS mm of every voxel of a segment, from the positions that the frames of the file state."""
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


def points_by_dcmqi(file: Path, segment: int) -> np.ndarray:
    """RAS mm of every voxel of a segment, as another program reads the file."""
    folder = file.parent / f"{file.stem} by dcmqi"
    if not folder.exists():
        folder.mkdir()
        command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", file, "--outputDirectory", folder, "--outputType", "nii"]
        subprocess.run(command, check=True, capture_output=True)
    image = nib.load(folder / f"{segment}.nii.gz")
    return points(np.asanyarray(image.dataobj) > 0, image.affine)


# Places


ORIENTATIONS = [
    *(affine_of(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)),
    affine_of(angle=0.4),
    affine_of((2, 0, 1), (1, -1, 1), 0.3),
]


@pytest.mark.parametrize("affine", ORIENTATIONS, ids=["".join(nib.aff2axcodes(a)) for a in ORIENTATIONS])
def test_every_voxel_lies_where_the_mask_has_it_in_every_orientation(affine, tmp_path):
    write_series(tmp_path / "s", IMAGE, affine)
    dataset = write(tmp_path / "s", tmp_path / "seg.dcm", affine=affine)
    for segment in (1, 2):
        assert_same_places(points_in_file(dataset, segment), points(segment == MASK, affine))
        assert_same_places(points_by_dcmqi(tmp_path / "seg.dcm", segment), points(segment == MASK, affine))


def test_the_masks_axes_may_run_in_another_order(tmp_path):
    write_series(tmp_path / "s", IMAGE, AFFINE)
    turned = AFFINE.copy()
    turned[:3, :3] = AFFINE[:3, [2, 0, 1]]
    dataset = write(tmp_path / "s", tmp_path / "seg.dcm", MASK.transpose(2, 0, 1), turned)
    assert_same_places(points_in_file(dataset, 1), points(MASK == 1, AFFINE))


@pytest.mark.parametrize("order", [None, [7, 6, 5, 4, 3, 2, 1, 0], [0, 2, 4, 6, 1, 3, 5, 7]])
def test_frames_of_a_multi_frame_file_are_referred_to_by_number(order, tmp_path):
    file = write_multiframe(tmp_path / "s/mf.dcm", IMAGE, AFFINE, order)
    dataset = write(tmp_path / "s", tmp_path / "seg.dcm")
    source = pydicom.dcmread(file)
    for segment in (1, 2):
        assert_same_places(points_in_file(dataset, segment), points(segment == MASK, AFFINE))
        assert_same_places(points_by_dcmqi(tmp_path / "seg.dcm", segment), points(segment == MASK, AFFINE))
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        of_source = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        positions = [f.PlanePositionSequence[0].ImagePositionPatient for f in (frame, of_source)]
        np.testing.assert_allclose(*positions, atol=1e-4)


def test_a_jitter_of_the_slices_becomes_a_regular_grid(tmp_path):
    jitter = np.random.default_rng(1).uniform(-0.02, 0.02, (8, 3))

    def edit(slice_: Dataset, k: int) -> None:
        slice_.ImagePositionPatient = list(np.round(np.array(slice_.ImagePositionPatient, float) + jitter[k], 4))
        slice_.ImageOrientationPatient = [x + 1e-5 * (k % 2) for x in slice_.ImageOrientationPatient]

    write_series(tmp_path / "s", IMAGE, AFFINE, edit=edit)
    dataset = write(tmp_path / "s", tmp_path / "seg.dcm")
    frames = dataset.PerFrameFunctionalGroupsSequence
    positions = np.unique([f.PlanePositionSequence[0].ImagePositionPatient for f in frames], axis=0)
    steps = np.diff(positions[np.argsort(positions[:, 2])], axis=0)
    np.testing.assert_allclose(steps, steps[:1].repeat(len(steps), 0), atol=1e-6)
    assert_same_places(points_by_dcmqi(tmp_path / "seg.dcm", 1), points(MASK == 1, AFFINE), 0.05)


def tilted(degrees: float) -> np.ndarray:
    affine = affine_of()
    affine[1, 2] = 2 * np.tan(np.radians(degrees))
    return affine


def test_a_tilt_that_other_readers_would_not_see_is_refused(tmp_path):
    write_series(tmp_path / "s", IMAGE, tilted(0.5))
    with pytest.raises(VolumeError, match=r"tilted, the last lies 0.12 mm aside of the first.* NIfTI mask is right"):
        write(tmp_path / "s", tmp_path / "seg.dcm", affine=tilted(0.5))
    assert not (tmp_path / "seg.dcm").exists()


def test_a_tilt_of_hundredths_of_a_mm_is_straightened(tmp_path):
    write_series(tmp_path / "s", IMAGE, tilted(0.1))
    write(tmp_path / "s", tmp_path / "seg.dcm", affine=tilted(0.1))
    assert_same_places(points_by_dcmqi(tmp_path / "seg.dcm", 1), points(MASK == 1, tilted(0.1)), 0.05)


# What the file says


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize(
    "writer", [write_series, lambda f, *a: write_multiframe(f / "mf.dcm", *a)], ids=["series", "mf"]
)
@pytest.mark.parametrize("mask", [MASK, MASK * 0], ids=["mask", "empty mask"])
def test_dciodvfy_finds_nothing_to_report(writer, mask, tmp_path):
    writer(tmp_path / "s", IMAGE, AFFINE)
    write(tmp_path / "s", tmp_path / "seg.dcm", mask)
    result = subprocess.run([DCIODVFY, tmp_path / "seg.dcm"], capture_output=True, text=True, check=True)
    assert (result.stdout + result.stderr).split() == ["Segmentation"]


def test_segments_bear_names_and_codes_and_the_file_belongs_to_the_study(tmp_path):
    files = write_series(tmp_path / "s", IMAGE, AFFINE)
    dataset = write(tmp_path / "s", tmp_path / "seg.dcm")
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == ["anterior", "posterior"]
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in dataset.SegmentSequence]
    assert [(kind.CodeValue, kind.CodeMeaning) for kind in kinds] == [
        ("5366008", "Hippocampus"),
        ("85756007", "Tissue"),
    ]
    assert kinds[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Anterior"
    assert {segment.SegmentAlgorithmName for segment in dataset.SegmentSequence} == {"DiGAR"}
    first = pydicom.dcmread(files[0])
    for key in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert dataset[key].value == first[key].value
    assert (dataset.SeriesNumber, dataset.SeriesDescription) == (1001, "DiGAR: T1 phantom")
    assert dataset.SeriesInstanceUID not in (first.SeriesInstanceUID, dataset.SOPInstanceUID)


def test_labels_of_any_value_are_segments_numbered_from_1(tmp_path):
    write_series(tmp_path / "s", IMAGE, AFFINE)
    mask = np.choose(MASK, [0, 300, 7]).astype(np.uint16)
    dataset = write(tmp_path / "s", tmp_path / "seg.dcm", mask, labels={300: "Lebervene ä", 7: "b" * 80, 2: "absent"})
    segments = [(segment.SegmentNumber, segment.SegmentLabel) for segment in dataset.SegmentSequence]
    assert segments == [(1, "absent"), (2, "b" * 64), (3, "Lebervene ä")]
    assert_same_places(points_in_file(dataset, 2), points(MASK == 2, AFFINE))
    assert_same_places(points_in_file(dataset, 3), points(MASK == 1, AFFINE))
    frames = dataset.PerFrameFunctionalGroupsSequence
    assert {frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber for frame in frames} == {2, 3}


def test_what_an_anonymiser_took_out_or_spoiled_is_empty(tmp_path):
    taken = (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
        "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer", "SeriesNumber",
        "Modality", "SeriesDescription", "SliceThickness", "SpecificCharacterSet",
    )  # fmt: skip

    def take(slice_: Dataset, k: int) -> None:
        for keyword in taken:
            if keyword in slice_:
                del slice_[keyword]

    def spoil(slice_: Dataset, k: int) -> None:
        slice_.PatientBirthDate, slice_.StudyDate, slice_.StudyTime, slice_.PatientSex = "1950", "anon", "25h", "X"
        slice_[0x00101030] = RawDataElement(Tag(0x00101030), "DS", 4, b"70,5", 0, False, True)  # the weight

    for edit in (take, spoil):
        write_series(tmp_path / edit.__name__, IMAGE, AFFINE, edit=edit)
        dataset = write(tmp_path / edit.__name__, tmp_path / f"{edit.__name__}.dcm")
        assert not any(dataset[key].value for key in ("PatientBirthDate", "StudyDate", "StudyTime", "PatientSex"))
        assert_same_places(points_by_dcmqi(tmp_path / f"{edit.__name__}.dcm", 1), points(MASK == 1, AFFINE))


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID"])
def test_what_a_segmentation_must_refer_to_is_asked_for(keyword, tmp_path):
    def edit(slice_: Dataset, k: int) -> None:
        del slice_[keyword]

    write_series(tmp_path / "s", IMAGE, AFFINE, edit=edit)
    with pytest.raises(VolumeError, match=f"s: has no {keyword}, to which a DICOM SEG must refer"):
        write(tmp_path / "s", tmp_path / "seg.dcm")


def test_a_repeated_run_writes_the_same_object_and_other_settings_another(tmp_path):
    files = write_series(tmp_path / "s", IMAGE, AFFINE)
    uids = []
    for settings, labels in (("one", LABELS), ("one", LABELS), ("two", LABELS), ("one", {**LABELS, 2: "other"})):
        dataset = write(tmp_path / "s", tmp_path / "seg.dcm", settings=settings, labels=labels)
        uids.append((dataset.SeriesInstanceUID, dataset.SOPInstanceUID))
    assert uids[0] == uids[1]
    shutil.copytree(tmp_path / "s", tmp_path / "elsewhere")
    again = write(tmp_path / "elsewhere", tmp_path / "seg.dcm")
    assert (again.SeriesInstanceUID, again.SOPInstanceUID) == uids[0]
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        dataset.save_as(file)
    uids.append((write(tmp_path / "s", tmp_path / "seg.dcm").SeriesInstanceUID,))
    assert len({uid for pair in uids for uid in pair}) == 7


def test_an_empty_mask_is_written(tmp_path):
    write_series(tmp_path / "s", IMAGE, AFFINE)
    assert not write(tmp_path / "s", tmp_path / "seg.dcm", MASK * 0).pixel_array.any()


# What is refused


def test_a_mask_of_another_grid_is_refused_with_both_paths(tmp_path):
    write_series(tmp_path / "s", IMAGE, AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    with pytest.raises(VolumeError, match=r"seg.nii.gz: lies 5 mm apart from the series .*/s: give the mask of this"):
        write(tmp_path / "s", tmp_path / "seg.dcm", affine=moved)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_value_without_a_name_is_refused(tmp_path):
    write_series(tmp_path / "s", IMAGE, AFFINE)
    with pytest.raises(VolumeError, match=r"seg.nii.gz: holds the values \[3, 6\], which have no name"):
        write(tmp_path / "s", tmp_path / "seg.dcm", MASK * 3)


def test_several_multi_frame_files_are_refused(tmp_path):
    for name, order in (("a", [0, 1, 2, 3]), ("b", [4, 5, 6, 7])):
        edit = lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3")  # noqa: E731
        write_multiframe(tmp_path / f"s/{name}.dcm", IMAGE, AFFINE, order, edit)
    with pytest.raises(VolumeError, match="is spread over several multi-frame files"):
        write(tmp_path / "s", tmp_path / "seg.dcm")


# A folder


def make_images(folder: Path) -> Path:
    """Series a (tilted), b, and one below another folder; a series that is none, and a NIfTI file."""
    for name, affine in (("a", tilted(0.5)), ("b", AFFINE), ("ward/c", AFFINE)):
        write_series(folder / name, IMAGE, affine)
    write_series(folder / "scout", IMAGE[..., :1], AFFINE)
    nib.save(nib.Nifti1Image(IMAGE, AFFINE), folder / "d.nii.gz")
    return folder


def segment(images: Path, masks: Path, **options: object) -> tuple[int, dict[str, dict[str, str]]]:
    """Run over a folder: what is missing, and the rows of the report by file."""
    evaluator = make_evaluator(images, masks, dicom_seg=True, **options)
    evaluator.run()
    with (masks / "report.csv").open() as stream:
        return evaluator.failed, {row["file"]: row for row in csv.DictReader(stream)}


def uid(file: Path) -> str:
    return pydicom.dcmread(file).SOPInstanceUID


def test_every_good_series_has_its_segmentation_whatever_the_others_do(tmp_path):
    images, masks = make_images(tmp_path / "in"), tmp_path / "out"
    missing, rows = segment(images, masks)
    assert missing == 2
    assert {name: row["dicom_seg"] for name, row in rows.items()} == {
        "a": "", "b": "b_mask.dcm", "d.nii.gz": "", "scout": "", "ward/c": "ward/c_mask.dcm",
    }  # fmt: skip
    assert rows["a"]["status"] == rows["d.nii.gz"]["status"] == "done"
    assert "no DICOM SEG: its slices are tilted" in rows["a"]["warnings"]
    assert rows["scout"]["status"] == "failed"
    assert rows["scout"]["series"] == rows["b"]["series"] == "T1 phantom, series 1, MR"
    assert "T1 phantom, series 1, MR" in (masks / "report.html").read_text()
    found, mask = pydicom.dcmread(masks / "b_mask.dcm"), nib.load(masks / "b_mask.nii.gz")
    values = np.asanyarray(mask.dataobj)
    segments = [s.SegmentNumber for s in found.SegmentSequence if (values == s.SegmentNumber).any()]
    assert segments
    for number in segments:
        assert_same_places(points_in_file(found, number), points(values == number, mask.affine))


def test_a_repeated_run_leaves_the_segmentations_and_writes_those_that_are_missing(tmp_path):
    images, masks = make_images(tmp_path / "in"), tmp_path / "out"
    evaluator = make_evaluator(images, masks)
    evaluator.run()
    assert evaluator.failed == 1
    assert not list(masks.rglob("*.dcm"))
    first = segment(images, masks)
    states = {file: (file.stat().st_mtime_ns, uid(file)) for file in masks.rglob("*.dcm")}
    assert len(states) == 2
    (masks / "ward/c_mask.dcm").unlink()
    assert segment(images, masks)[0] == first[0] == 2
    again = {file: (file.stat().st_mtime_ns, uid(file)) for file in masks.rglob("*.dcm")}
    assert again[masks / "b_mask.dcm"] == states[masks / "b_mask.dcm"]
    assert again[masks / "ward/c_mask.dcm"][1] == states[masks / "ward/c_mask.dcm"][1]


def test_other_codes_and_a_corrected_mask_give_another_object(tmp_path):
    write_series(tmp_path / "in/b", IMAGE, AFFINE)
    masks = tmp_path / "out"
    uids = []
    for codes in ({}, CODES):
        segment(tmp_path / "in", masks, codes=codes)
        uids.append(uid(masks / "b_mask.dcm"))
    image = nib.load(masks / "b_mask.nii.gz")
    corrected = np.asanyarray(image.dataobj).copy()
    corrected[:2] = 1
    nib.save(nib.Nifti1Image(corrected, image.affine), masks / "b_mask.nii.gz")
    assert segment(tmp_path / "in", masks, codes=CODES)[0] == 0
    uids.append(uid(masks / "b_mask.dcm"))
    assert len(set(uids)) == 3
    found = pydicom.dcmread(masks / "b_mask.dcm")
    assert found.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Hippocampus"
    assert_same_places(points_in_file(found, 1), points(corrected == 1, image.affine))


def test_a_segmentation_goes_with_its_mask_and_files_of_others_stay(tmp_path):
    files = write_series(tmp_path / "in/b", IMAGE, AFFINE)
    masks = tmp_path / "out"
    masks.mkdir()
    (masks / "b_mask.dcm").write_bytes(b"of another program")
    missing, rows = segment(tmp_path / "in", masks)
    assert missing == 1
    assert "b_mask.dcm is there, but was not written by this program" in rows["b"]["warnings"]
    assert (masks / "b_mask.dcm").read_bytes() == b"of another program"
    (masks / "b_mask.dcm").unlink()
    assert segment(tmp_path / "in", masks)[0] == 0
    assert (masks / "b_mask.dcm").exists()
    files[3].unlink()
    missing, rows = segment(tmp_path / "in", masks)
    assert (missing, rows["b"]["status"]) == (1, "failed")
    assert not list(masks.glob("b_mask.*"))


def test_masks_of_a_former_run_become_segmentations(tmp_path):
    images, masks = make_images(tmp_path / "in"), tmp_path / "out"
    make_evaluator(images, masks).run()
    result = CliRunner().invoke(app, ["dicom-seg", str(images), str(masks)])
    assert result.exit_code == 3
    assert [file.relative_to(masks).as_posix() for file in sorted(masks.rglob("*.dcm"))] == [
        "b_mask.dcm",
        "ward/c_mask.dcm",
    ]
    printed = result.stdout.splitlines()[-2:]
    assert "a: no DICOM SEG: its slices are tilted" in printed[0]
    assert printed[1] == "scout: no DICOM SEG: it has no mask: run the inference first"
    assert "b_mask.dcm" in (masks / "report.csv").read_text()
    uids = {file: uid(file) for file in masks.rglob("*.dcm")}
    segment(images, masks)
    assert {file: uid(file) for file in masks.rglob("*.dcm")} == uids


def test_a_folder_without_series_or_without_a_run_is_refused(tmp_path):
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(MASK, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(FileNotFoundError, match="contains no DICOM series"):
        write_folder(tmp_path, tmp_path / "masks")
    write_series(tmp_path / "s", IMAGE, AFFINE)
    with pytest.raises(FileNotFoundError, match="masks is not the output folder of a folder inference"):
        write_folder(tmp_path, tmp_path / "masks")

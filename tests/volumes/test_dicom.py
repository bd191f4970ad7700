"""A DICOM series is what its SeriesInstanceUID and its slices' positions say; what makes no volume is refused."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from digar.volumes.dicom import describe_series, find_series, is_dicom, series_files
from digar.volumes.reading import VolumeError, read_header, read_volume
from digar.volumes.search import find_volumes
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

from tests.dicom_files import write_multiframe, write_series

rng = np.random.default_rng(0)
VALUES = rng.integers(-200, 1000, (12, 10, 8)).astype(np.int16)


def turned(angle: float = 0.4, spacing: tuple = (0.9, 1.1, 2.0)) -> np.ndarray:
    """An affine off the patient's axes."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = -30, 12, 7
    return affine


AFFINE = turned()


def assert_read_as(path: Path, values: np.ndarray = VALUES, affine: np.ndarray = AFFINE) -> None:
    """A path is read as these values at these places, whichever end its slices begin at."""
    volume = read_volume(path)
    array, found = volume[0].numpy(), np.asarray(volume.affine)
    if found[:3, 2] @ affine[:3, 2] < 0:
        array = array[:, :, ::-1]
        found = found @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, values.shape[2] - 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(array, values.astype(np.float32))
    np.testing.assert_allclose(found, affine, atol=1e-4)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(VolumeError, match=reason) as error:
        read_volume(path)
    assert error.value.path == str(path)


def keep(positions: dict[int, list[float]]):
    """An edit that moves slices: number to what is added to its position in LPS mm."""

    def edit(slice_: Dataset, k: int) -> None:
        if k in positions:
            slice_.ImagePositionPatient = [
                x + y for x, y in zip(slice_.ImagePositionPatient, positions[k], strict=True)
            ]

    return edit


# What belongs to a series


@pytest.mark.parametrize("affine", [AFFINE, AFFINE @ np.diag([1, 1, -1, 1]), turned(2.5), np.diag([-1.0, -1, 3, 1])])
def test_a_series_is_read_in_the_place_that_its_positions_say(affine, tmp_path):
    write_series(tmp_path / "s", VALUES, affine)
    assert_read_as(tmp_path / "s", affine=affine)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d, k: setattr(d, "SliceThickness", "2" if k % 2 else "2.0"),
        lambda d, k: setattr(d, "SequenceName", f"*tfl{k % 2}"),
        lambda d, k: setattr(d, "SeriesDate", "20250101") if k % 2 else None,
        lambda d, k: setattr(d, "SeriesNumber", k),
        lambda d, k: setattr(d, "ProtocolName", f"p{k}"),
        lambda d, k: setattr(d, "ImageType", ["DERIVED" if k % 2 else "ORIGINAL", "PRIMARY"]),
        lambda d, k: setattr(d, "InstanceNumber", 5),
    ],
    ids=["thickness", "sequence", "partial dates", "number", "protocol", "type", "instance number"],
)
def test_slices_of_one_uid_are_one_series_whatever_else_differs(edit, tmp_path):
    write_series(tmp_path / "s", VALUES, AFFINE, edit=edit)
    assert_read_as(tmp_path / "s")


def test_a_series_in_two_sub_folders_is_one_series(tmp_path):
    files = write_series(tmp_path / "s/a", VALUES, AFFINE)
    (tmp_path / "s/b").mkdir()
    for file in files[::2]:
        file.rename(tmp_path / "s/b" / file.name)
    found = find_series(file for file in tmp_path.rglob("*.dcm"))
    assert {path: len(files) for path, files in found.items()} == {tmp_path / "s": 8}
    assert_read_as(tmp_path / "s")


def test_series_that_share_folders_are_named_by_their_uids(tmp_path):
    one, two, three = (generate_uid() for _ in range(3))
    write_series(tmp_path / "a", VALUES, AFFINE, one)
    write_series(tmp_path / "a", VALUES + 1, AFFINE, two, name="second_{}")
    write_series(tmp_path / "a/below", VALUES + 2, AFFINE, three)
    write_series(tmp_path / "b", VALUES + 3, AFFINE)
    found = find_series(file for file in tmp_path.rglob("*") if file.is_file())
    named = [tmp_path / "a" / one, tmp_path / "a" / two, tmp_path / "a/below", tmp_path / "b"]
    assert list(found) == sorted(named)
    for number, path in enumerate(named):
        assert_read_as(path, VALUES + number)
        assert series_files(path) == found[path]
    refused(tmp_path / "a", f"holds 3 DICOM series: name one of them: .*{one} .T1 phantom.")
    refused(tmp_path / "a/1.2.3", "no DICOM series of this SeriesInstanceUID")


def test_series_whose_uids_are_none_have_a_name_too(tmp_path):
    write_series(tmp_path, VALUES, AFFINE, "series A/1", name="a{}.dcm")
    write_series(tmp_path, VALUES + 1, AFFINE, "series B", name="b{}.dcm")
    write_series(tmp_path, VALUES + 2, AFFINE, "1.2.3", name="c{}.dcm")
    found = {files[0].name[0]: path for path, files in find_series(tmp_path.glob("*.dcm")).items()}
    for number, name in enumerate("abc"):
        assert found[name].parent == tmp_path
        assert_read_as(found[name], VALUES + number)


def test_a_uid_that_an_anonymiser_gave_to_several_patients_is_refused(tmp_path):
    def edit(slice_: Dataset, k: int) -> None:
        slice_.PatientID = "1" if k % 2 else "2"

    def partly(slice_: Dataset, k: int) -> None:
        slice_.PatientID = "1" if k % 2 else ""

    write_series(tmp_path / "s", VALUES, AFFINE, edit=edit)
    refused(tmp_path / "s", r"one SeriesInstanceUID, but several patients \(PatientID\)")
    write_series(tmp_path / "t", VALUES, AFFINE, edit=partly)
    assert_read_as(tmp_path / "t")


def test_what_holds_no_image_is_left_out_and_said(tmp_path, caplog):
    write_series(tmp_path / "s", VALUES, AFFINE)
    write_series(tmp_path / "s", VALUES[..., :1], AFFINE, sop_class=SegmentationStorage, name="seg_{}.dcm")
    (tmp_path / "s/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "s/._0000.dcm").write_bytes(b"resource fork")
    (tmp_path / "s/notes.txt").write_text("a note")
    with caplog.at_level("INFO"):
        assert find_volumes(tmp_path) == [str(tmp_path / "s")]
    assert_read_as(tmp_path / "s")
    assert "Segmentation Storage is not an image and is left out" in caplog.text


def test_files_without_ending_and_without_preamble_are_found(tmp_path):
    for file in write_series(tmp_path / "s", VALUES, AFFINE, name="IM{}"):
        assert is_dicom(file)
    assert_read_as(tmp_path / "s")
    for file in write_series(tmp_path / "old", VALUES, AFFINE):
        dataset = pydicom.dcmread(file)
        dataset.preamble = None
        del dataset.file_meta
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True)
        assert is_dicom(file)
    assert_read_as(tmp_path / "old")


def test_a_series_is_described_by_its_words(tmp_path):
    files = write_series(tmp_path / "s", VALUES, AFFINE, "1.2.3")
    described = describe_series(files)
    assert (described["SeriesDescription"], described["Modality"]) == ("T1 phantom", "MR")
    assert described["SeriesInstanceUID"] == "1.2.3"


# Geometry


def test_a_jitter_of_hundredths_of_a_mm_is_read(tmp_path):
    write_series(tmp_path / "s", VALUES, AFFINE, edit=keep({3: [0.01, 0.01, 0.015]}))
    assert_read_as(tmp_path / "s")


def test_a_missing_slice_is_refused_with_its_neighbours(tmp_path):
    files = write_series(tmp_path / "s", VALUES, AFFINE)
    files[3].unlink()
    names = {files[2].name, files[4].name}
    with pytest.raises(VolumeError, match=r"2\.00 to 4\.00 mm apart: a slice is missing") as error:
        read_header(tmp_path / "s")
    assert all(name in str(error.value) for name in names)


def test_a_missing_slice_of_a_small_animal_is_refused(tmp_path):
    write_series(tmp_path / "s", VALUES, np.diag([0.05, 0.05, 0.05, 1.0]))[4].unlink()
    refused(tmp_path / "s", r"0\.05 to 0\.10 mm apart: a slice is missing")


@pytest.mark.parametrize("degrees", [1.0, 15.0])
def test_a_gantry_tilt_is_refused_with_its_angle(degrees, tmp_path):
    affine = np.eye(4)
    affine[1, 2] = np.tan(np.radians(degrees))
    write_series(tmp_path / "s", VALUES, affine)
    refused(tmp_path / "s", f"tilted by {degrees} degrees")


def test_a_slice_aside_is_refused(tmp_path):
    write_series(tmp_path / "s", VALUES, np.eye(4), edit=keep({3: [2.0, 0, 0]}))
    refused(tmp_path / "s", "lies 2.00 mm aside")


def test_a_slice_that_is_there_twice_is_called_a_duplicate(tmp_path):
    files = write_series(tmp_path / "s", VALUES, AFFINE)
    shutil.copy(files[2], tmp_path / "s/copy.dcm")
    refused(tmp_path / "s", r"duplicate slices \(1\): .*copy.dcm.* the same one, remove the copy")


def test_a_series_that_is_there_twice_is_called_duplicate(tmp_path):
    write_series(tmp_path / "s/a", VALUES, AFFINE)
    shutil.copytree(tmp_path / "s/a", tmp_path / "s/b")
    refused(tmp_path / "s", r"duplicate slices \(8\)")


def test_another_slice_in_the_same_place_is_called_a_duplicate(tmp_path):
    series = generate_uid()
    write_series(tmp_path / "s", VALUES, AFFINE, series)
    write_series(tmp_path / "s", VALUES[..., :2], AFFINE, series, name="again_{}")
    refused(tmp_path / "s", r"duplicate slices \(2\)")


def test_several_time_points_in_one_series_are_refused_by_name(tmp_path):
    series = generate_uid()
    for time in range(3):
        edit = lambda d, k, time=time: setattr(d, "TemporalPositionIdentifier", time + 1)  # noqa: E731
        write_series(tmp_path / "s", VALUES, AFFINE, series, edit, name=f"{time}_{{}}.dcm")
    refused(tmp_path / "s", r"3 volumes in the same 8 places .*: time points, echoes or duplicate")


def test_localizers_of_several_directions_and_sizes_are_refused(tmp_path):
    series = generate_uid()
    write_series(tmp_path / "s", VALUES, AFFINE, series)
    write_series(tmp_path / "s", VALUES[..., :1], turned(1.5), series, name="scout")
    refused(tmp_path / "s", r"2 different directions \(8, 1 slices\)|2 different directions \(1, 8 slices\)")
    write_series(tmp_path / "t", VALUES, AFFINE, series)
    write_series(tmp_path / "t", VALUES[:5], AFFINE, series, name="small_{}")
    refused(tmp_path / "t", "2 different sizes")


def test_a_single_slice_is_refused(tmp_path):
    write_series(tmp_path / "s", VALUES[..., :1], AFFINE)
    refused(tmp_path / "s", "is a single slice")


def test_a_secondary_capture_without_a_place_is_refused(tmp_path):
    def edit(slice_: Dataset, k: int) -> None:
        del slice_.ImagePositionPatient, slice_.ImageOrientationPatient

    write_series(tmp_path / "s", VALUES, AFFINE, edit=edit, sop_class=SecondaryCaptureImageStorage)
    refused(tmp_path / "s", r"its file \d+.dcm does not say where it lies \(ImageOrientationPatient is missing\)")


# Multi-frame files


REVERSED = list(range(8))[::-1]
INTERLEAVED = [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("order", [None, REVERSED, INTERLEAVED], ids=["in order", "reversed", "interleaved"])
def test_frames_lie_where_their_own_positions_say(order, tmp_path):
    file = write_multiframe(tmp_path / "s/mf.dcm", VALUES, AFFINE, order)
    assert_read_as(tmp_path / "s")
    assert_read_as(file)


def test_frames_of_two_stacks_in_other_directions_are_refused(tmp_path):
    def edit(dataset: Dataset) -> None:
        orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        for k, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.PlaneOrientationSequence = orientation
            if k > 3:
                frame.FrameContentSequence[0].StackID = "2"
                frame.PlaneOrientationSequence = [Dataset()]
                frame.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_multiframe(tmp_path / "s/mf.dcm", VALUES, AFFINE, edit=edit)
    refused(tmp_path / "s", r"2 different directions \(4, 4 slices\)")


@pytest.mark.parametrize(
    ("order", "reason"),
    [([0, 1, 2, 3, 6, 7], "a slice is missing"), ([0, 1, 2, 2, 3], r"duplicate slices \(1\)"),
     ([0, 1, 2, 3] * 2, "2 volumes in the same 4 places .*time points")],
    ids=["gap", "doubled", "time points"],
)  # fmt: skip
def test_frames_without_a_grid_are_refused(order, reason, tmp_path):
    write_multiframe(tmp_path / "s/mf.dcm", VALUES, AFFINE, order)
    refused(tmp_path / "s", reason)


def test_tilted_frames_are_refused(tmp_path):
    affine = np.eye(4)
    affine[0, 2] = 0.1
    write_multiframe(tmp_path / "s/mf.dcm", VALUES, affine)
    refused(tmp_path / "s", "tilted by 5.7 degrees")


def test_frames_without_positions_are_refused_by_number(tmp_path):
    def one(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence

    def all_(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence

    write_multiframe(tmp_path / "one/mf.dcm", VALUES, AFFINE, edit=one)
    refused(tmp_path / "one", r"mf.dcm does not say where frame 3 lies \(ImagePositionPatient is missing\)")
    write_multiframe(tmp_path / "all/mf.dcm", VALUES, AFFINE, edit=all_)
    refused(tmp_path / "all", "mf.dcm holds 8 frames, and the positions of 0")


def test_frames_of_several_files_are_one_volume(tmp_path):
    series = generate_uid()
    for number, order in enumerate(([0, 1, 2, 3], [4, 5, 6, 7])):
        write_multiframe(
            tmp_path / f"s/{number}.dcm", VALUES, AFFINE, order, lambda d: setattr(d, "SeriesInstanceUID", series)
        )
    assert_read_as(tmp_path / "s")


# Values


def test_every_slice_has_its_own_slope_and_intercept(tmp_path):
    def edit(slice_: Dataset, k: int) -> None:
        slice_.RescaleSlope, slice_.RescaleIntercept = 0.5 * (k + 1), -1024 + k

    write_series(tmp_path / "s", VALUES, AFFINE, edit=edit, sop_class=CTImageStorage)
    assert_read_as(tmp_path / "s", VALUES * 0.5 * np.arange(1, 9) - 1024 + np.arange(8))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per frame"])
def test_every_frame_has_its_own_slope_and_intercept(shared, tmp_path):
    def edit(dataset: Dataset) -> None:
        for k, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            values = Dataset()
            values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 0.1 * (k + 1), -7 + k, "US"
            frame.PixelValueTransformationSequence = [values]
            if shared:
                dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [values]
        if shared:
            for frame in dataset.PerFrameFunctionalGroupsSequence:
                del frame.PixelValueTransformationSequence

    write_multiframe(tmp_path / "s/mf.dcm", VALUES, AFFINE, edit=edit)
    slope, intercept = (0.8, 0) if shared else (0.1 * np.arange(1, 9), np.arange(8) - 7)
    volume = read_volume(tmp_path / "s")[0].numpy()
    np.testing.assert_allclose(volume, VALUES * slope + intercept, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_signed_and_unsigned_values_of_few_bits_are_read(bits, signed, tmp_path):
    values = VALUES if signed else VALUES + 200

    def edit(slice_: Dataset, k: int) -> None:
        slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = bits, bits - 1, int(signed)
        stored = np.frombuffer(slice_.PixelData, "<u2") & (2**bits - 1)
        slice_.PixelData = stored.astype("<u2").tobytes()

    write_series(tmp_path / "s", values, AFFINE, edit=edit)
    assert_read_as(tmp_path / "s", values)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless], ids=["RLE", "JPEG-LS"])
def test_compressed_slices_are_read(syntax, tmp_path):
    values = np.kron(VALUES, np.ones((4, 4, 1), np.int16))
    for file in write_series(tmp_path / "s", values, AFFINE):
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(file)
    assert_read_as(tmp_path / "s", values)


def test_a_compression_that_cannot_be_read_is_named(tmp_path):
    for file in write_series(tmp_path / "s", VALUES, AFFINE):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # high-throughput JPEG 2000
        dataset["PixelData"].VR = "OB"
        dataset.save_as(file)
    refused(tmp_path / "s", r"cannot be decoded \(High-Throughput JPEG 2000.*201\): store it uncompressed")


def test_pixels_that_are_no_plain_numbers_are_refused(tmp_path):
    def colours(slice_: Dataset, k: int) -> None:
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PlanarConfiguration = 3, "RGB", 0
        slice_.BitsAllocated = slice_.BitsStored = 8
        slice_.HighBit, slice_.PixelRepresentation, slice_.PixelData = 7, 0, bytes(12 * 10 * 3)

    def table(slice_: Dataset, k: int) -> None:
        slice_.PhotometricInterpretation = "PALETTE COLOR"

    def inverted(slice_: Dataset, k: int) -> None:
        slice_.PhotometricInterpretation = "MONOCHROME1"

    def constant(slice_: Dataset, k: int) -> None:
        slice_.RescaleSlope, slice_.RescaleIntercept = 0, 1

    for edit, reason in (
        (colours, r"colours \(RGB\)"),
        (table, r"colours \(PALETTE COLOR\)"),
        (inverted, "small values bright .MONOCHROME1.: convert it"),
        (constant, "RescaleSlope of 0"),
    ):
        write_series(tmp_path / edit.__name__, VALUES, AFFINE, edit=edit)
        refused(tmp_path / edit.__name__, reason)


# Damage


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    files = write_series(tmp_path / "s", VALUES, AFFINE)
    files[-1].write_bytes(files[-1].read_bytes()[:-10])
    refused(tmp_path / "s", f"its file {files[-1].name} is cut short, 10 bytes of its pixels are missing")
    write_series(
        tmp_path / "t", VALUES, AFFINE, edit=lambda d, k: setattr(d, "PixelData", d.PixelData[: -20 * (k == 0)])
    )
    refused(tmp_path / "t", "is cut short")


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, bytes(128) + b"DICM" + b"\xff" * 90])
def test_a_last_slice_that_is_damaged_is_not_left_out_in_silence(content, tmp_path):
    files = write_series(tmp_path / "s", VALUES, AFFINE)
    files[-1].write_bytes(content)
    refused(tmp_path / "s", f"its file {files[-1].name} ")


def test_a_damaged_compressed_slice_is_refused(tmp_path):
    values = np.kron(VALUES, np.ones((4, 4, 1), np.int16))
    files = write_series(tmp_path / "s", values, AFFINE)
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
        dataset.save_as(file)
    files[2].write_bytes(files[2].read_bytes()[:-400])
    refused(tmp_path / "s", f"{files[2].name}.* cannot be")


def test_implicit_values_are_read(tmp_path):
    for file in write_series(tmp_path / "s", VALUES, AFFINE):
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True)
    assert_read_as(tmp_path / "s")

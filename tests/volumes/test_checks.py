"""What the network cannot make sense of is refused with its reason; what is odd is warned of."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.volumes import checks
from digar.volumes.checks import MEMORY_LEFT, NEED, WARNINGS, CheckedLoadImaged, CheckedReader, TooLargeError
from digar.volumes.grids import WorkingGridd
from digar.volumes.memory import BUFFERS
from digar.volumes.reading import VolumeError

VALUES = np.random.default_rng(0).normal(100, 20, (12, 11, 10)).astype(np.float32)
OPTIONS = {"in_channels": 1, "spacing": (1, 1, 1), "roi_size": (8, 8, 8), "num_classes": 3}
RANGE = {
    "spacing_mm": [[0.9, 0.9, 0.9], [1.1, 1.1, 1.1]],
    "extent_mm": [[9, 9, 9], [14, 14, 14]],
    "intensity_percentiles": [[[40, 60], [95, 105], [150, 180]]],
}


def write(path: Path, values: np.ndarray = VALUES, spacing: float = 1.0) -> Path:
    nib.save(nib.Nifti1Image(values, np.diag([spacing, spacing, spacing, 1])), path)
    return path


def read(path: Path | list[Path], **options: object) -> tuple[np.ndarray, dict]:
    return CheckedReader(**{**OPTIONS, **options}).read(path)


def test_a_sound_volume_passes_without_a_word(tmp_path):
    values, meta = read(write(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(values[0], VALUES)
    assert meta[WARNINGS] == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_few_voxels_that_are_no_numbers_are_replaced_and_reported(bad, tmp_path):
    broken = VALUES.copy()
    broken[0, 0, :5] = bad
    values, meta = read(write(tmp_path / "a.nii", broken))
    assert np.isfinite(values).all()
    assert (values[0, 0, 0, :5] == broken[np.isfinite(broken)].min()).all()
    assert meta[WARNINGS] == ["5 NaN or infinite voxels were replaced by the smallest value"]


def test_many_voxels_that_are_no_numbers_are_refused(tmp_path):
    broken = VALUES.copy()
    broken[:3] = np.nan
    with pytest.raises(VolumeError, match=r"25 % of its voxels are NaN or infinite, more than 1 %"):
        read(write(tmp_path / "a.nii", broken))
    assert read(tmp_path / "a.nii", nonfinite_share=0.3)[1][WARNINGS]


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_is_refused(value, tmp_path):
    with pytest.raises(VolumeError, match=f"is empty: every voxel is {value}"):
        read(write(tmp_path / "a.nii", np.full_like(VALUES, value)))


def test_a_fourth_axis_is_refused_or_each_of_its_volumes_taken(tmp_path):
    path = write(tmp_path / "a.nii", np.stack([VALUES, 2 * VALUES], axis=-1))
    with pytest.raises(VolumeError, match="holds 2 volumes .* infer with --volumes_4d each"):
        read(path)
    assert read(path, volumes_4d="each")[0].shape == (2, *VALUES.shape)
    assert read(path, in_channels=2)[0].shape == (2, *VALUES.shape)
    with pytest.raises(VolumeError, match="has 2 channels, the network takes 3"):
        read(path, in_channels=3)
    with pytest.raises(ValueError, match="volumes_4d 'all' must be one of refuse, each"):
        read(path, volumes_4d="all")


def test_several_files_are_the_channels_of_one_volume_if_their_grids_agree(tmp_path):
    paths = [write(tmp_path / f"a_000{i}.nii", (i + 1) * VALUES) for i in range(2)]
    values, _ = read(paths, in_channels=2)
    np.testing.assert_array_equal(values[1], 2 * VALUES)
    write(paths[1], spacing=1.2)
    with pytest.raises(VolumeError, match="a_0001.nii: lies 3.5 mm apart from its first channel .*a_0000.nii"):
        read(paths, in_channels=2)
    write(paths[1], VALUES[1:])
    with pytest.raises(VolumeError, match="a_0001.nii: has 11x11x10 voxels, its first channel .*a_0000.nii has 12x11"):
        read(paths, in_channels=2)


def test_a_volume_larger_than_the_memory_there_is_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii")
    monkeypatch.setattr(checks, "available_memory", lambda: 1000.0)
    monkeypatch.setattr(checks, "read_volume", None)
    with pytest.raises(TooLargeError, match="its 12x11x10 voxels need about .* GiB of memory"):
        read(path)


def test_a_header_that_promises_a_huge_volume_is_refused_without_reading(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30000, 30000, 30000))
    header.set_sform(np.eye(4), 1)
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(TooLargeError, match="30000x30000x30000"):
        read(tmp_path / "a.nii")


@pytest.mark.parametrize(("spacing", "reason"), [(16, "15 mm can be right"), (9, "9 times the network's 1 x 1 x 1 mm")])
@pytest.mark.parametrize("unit", [1, 1e3, 1e-6])
def test_a_spacing_that_the_network_cannot_be_made_for_is_refused_before_memory_is_asked_for(
    spacing, unit, reason, tmp_path
):
    reason = reason if unit == 1 else "correct the header"
    with pytest.raises(VolumeError, match=f"a.nii: its spacing is .*{reason}"):
        read(write(tmp_path / "a.nii", spacing=spacing * unit))


def test_a_spacing_far_from_that_of_the_training_images_is_refused(tmp_path):
    path = write(tmp_path / "a.nii", spacing=6.0)
    assert read(path)[1][WARNINGS] == []
    with pytest.raises(VolumeError, match=r"6 x 6 x 6 mm, that of the training images 0.9 x 0.9 x 0.9 to 1.1 x"):
        read(path, training_range=RANGE)


def test_what_others_have_taken_is_not_there_for_a_volume(tmp_path):
    load, case = CheckedLoadImaged("image", **OPTIONS), {"image": str(write(tmp_path / "a.nii"))}
    need = load(case)["image"].meta[NEED] + BUFFERS
    assert load({**case, MEMORY_LEFT: need})
    with pytest.raises(TooLargeError, match="a.nii"):
        load({**case, MEMORY_LEFT: need - 1})


def test_what_lies_outside_the_training_range_can_be_refused(tmp_path):
    options = {"training_range": RANGE, "out_of_range": "refuse"}
    read(write(tmp_path / "a.nii"), **options)
    with pytest.raises(VolumeError, match=r"b.nii: its spacing .* outside that of the training.*--out_of_range warn"):
        read(write(tmp_path / "b.nii", spacing=3.0), **options)
    with pytest.raises(VolumeError, match="c.nii: its 1 % intensity .* lies outside that of the training images"):
        read(write(tmp_path / "c.nii", 10 * VALUES), **options)
    with pytest.raises(ValueError, match="out_of_range refuse: what these weights were trained on is not known"):
        CheckedReader(1, out_of_range="refuse")
    with pytest.raises(ValueError, match="out_of_range 'no' must be one of warn, refuse"):
        CheckedReader(1, out_of_range="no")


def test_what_lies_outside_the_training_range_is_warned_of(tmp_path):
    assert read(write(tmp_path / "a.nii"), training_range=RANGE)[1][WARNINGS] == []
    spaced = read(write(tmp_path / "b.nii", spacing=3.0), training_range=RANGE)[1][WARNINGS]
    assert [w.split(" mm")[0] for w in spaced] == ["its spacing 3 x 3 x 3", "its extent 30 x 33 x 36"]
    bright = read(write(tmp_path / "c.nii", 10 * VALUES), training_range=RANGE)[1][WARNINGS]
    assert len(bright) == 3
    assert bright[1].startswith("its 50 % intensity 9")


# Labels


def write_pair(folder: Path, label: np.ndarray, label_affine: np.ndarray, affine: np.ndarray | None = None) -> dict:
    nib.save(nib.Nifti1Image(VALUES, np.eye(4) if affine is None else affine), folder / "image.nii")
    nib.save(nib.Nifti1Image(label, label_affine), folder / "label.nii")
    return {"image": str(folder / "image.nii"), "label": str(folder / "label.nii")}


def labels(values: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, values, VALUES.shape).astype(np.float32)


def load_pair(case: dict, **options: object) -> dict:
    return CheckedLoadImaged(["image", "label"], **{**OPTIONS, **options})(case)


def rotation(angle: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


@pytest.mark.parametrize(
    ("affine", "label_affine"),
    [
        (np.eye(4), np.diag([1, 1.0015, 1, 1])),
        (rotation(np.pi / 4 - 1e-5), rotation(np.pi / 4 + 1e-5)),
        (np.eye(4), np.array([[1, 0, 0, 0.09], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
    ],
    ids=["spacing", "45 degrees", "moved"],
)
def test_a_label_that_is_off_by_rounding_takes_the_grid_of_its_image(affine, label_affine, tmp_path):
    values = labels()
    loaded = load_pair(write_pair(tmp_path, values, label_affine, affine))
    assert torch.equal(loaded["label"].affine, loaded["image"].affine)
    np.testing.assert_array_equal(loaded["label"][0].numpy(), values)
    moved = WorkingGridd(["image", "label"], (1, 1, 1), ["linear", "nearest"])(loaded)
    assert moved["label"].shape == moved["image"].shape
    assert torch.equal(moved["label"].affine, moved["image"].affine)


@pytest.mark.parametrize(
    ("label_affine", "shape", "reason"),
    [
        (np.diag([1, 1.05, 1, 1]), VALUES.shape, r"lies 0\.5 mm apart from its image .*image.nii: resample it"),
        (np.diag([-1, 1, 1, 1]), VALUES.shape, "lies 22 mm apart from its image"),
        (np.eye(4), (12, 11, 9), "has 12x11x9 voxels, its image .*image.nii has 12x11x10"),
        (np.eye(4), (*VALUES.shape, 2), "holds 2 volumes"),
    ],
)
def test_a_label_in_another_grid_is_refused_with_both_files(label_affine, shape, reason, tmp_path):
    case = write_pair(tmp_path, np.zeros(shape, np.uint8), label_affine)
    with pytest.raises(VolumeError, match=f"label.nii: {reason}"):
        load_pair(case)


def test_half_a_voxel_is_never_the_same_grid(tmp_path):
    small = np.diag([0.1, 0.1, 0.1, 1])
    moved = small.copy()
    moved[0, 3] = 0.08
    with pytest.raises(VolumeError, match=r"label.nii: lies 0\.08 mm apart"):
        load_pair(write_pair(tmp_path, labels(), moved, small), spacing=(0.1, 0.1, 0.1))


@pytest.mark.parametrize(("bad", "named"), [(3, "3"), (-1, "-1"), (0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_label_values_that_are_no_class_are_named(bad, named, tmp_path):
    values = labels()
    values[1, 2, 3] = bad
    with pytest.raises(VolumeError, match=rf"holds the values {named}, num_classes is 3 \(0 to 2\): .*--num_classes"):
        load_pair(write_pair(tmp_path, values, np.eye(4)))


def test_more_than_256_classes_keep_their_numbers(tmp_path):
    values = labels(700)
    loaded = load_pair(write_pair(tmp_path, values, np.eye(4)), num_classes=700)
    np.testing.assert_array_equal(loaded["label"][0].numpy(), values)


def test_errors_reach_the_caller_as_they_are(tmp_path):
    (tmp_path / "a.nii.gz").write_text("no image")
    with pytest.raises(VolumeError, match="a.nii.gz: cannot be read"):
        CheckedLoadImaged("image", **OPTIONS)({"image": str(tmp_path / "a.nii.gz")})


def test_the_transform_gives_a_volume_with_monais_metadata(tmp_path):
    image = CheckedLoadImaged("image", **OPTIONS)({"image": str(write(tmp_path / "a.nii", spacing=2.0))})["image"]
    assert image.shape == (1, *VALUES.shape)
    np.testing.assert_allclose(image.meta["original_affine"], np.diag([2, 2, 2, 1]))
    assert str(image.meta["filename_or_obj"]).endswith("a.nii")

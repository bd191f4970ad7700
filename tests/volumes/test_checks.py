"""What the network cannot make sense of is refused with its reason; what is odd is warned of."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.volumes import checks, memory
from digar.volumes.checks import WARNINGS, CheckedReader, LoadVolumed, TooLargeError
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
    with pytest.raises(VolumeError, match=r"25\.0 % of its voxels are NaN or infinite, 1 % are borne"):
        read(write(tmp_path / "a.nii", broken))
    assert read(tmp_path / "a.nii", nonfinite_share=0.3)[1][WARNINGS]


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_is_refused(value, tmp_path):
    with pytest.raises(VolumeError, match=f"is empty: every voxel is {value}"):
        read(write(tmp_path / "a.nii", np.full_like(VALUES, value)))


def test_a_fourth_axis_is_refused_or_each_of_its_volumes_taken(tmp_path):
    path = write(tmp_path / "a.nii", np.stack([VALUES, 2 * VALUES], axis=-1))
    with pytest.raises(VolumeError, match="holds 2 volumes .* pass --volumes_4d each"):
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
    with pytest.raises(VolumeError, match="mm apart from its first channel"):
        read(paths, in_channels=2)
    write(paths[1], VALUES[1:])
    with pytest.raises(VolumeError, match="has the shape"):
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


def test_a_spacing_that_makes_an_endless_grid_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="correct its spacing"):
        read(write(tmp_path / "a.nii", spacing=50_000.0))


@pytest.mark.parametrize("name", ["_system", "_cgroup", "_address_space"])
def test_the_least_of_three_limits_is_what_can_be_taken(name, monkeypatch):
    before = memory.available_memory()
    assert before > 1e6
    monkeypatch.setattr(memory, name, lambda: 12345.0)
    assert memory.available_memory() == 12345.0


def test_more_classes_and_voxels_need_more_memory():
    plain = memory.needed_memory((512, 512, 800), 1, 2, (512, 512, 800), 3, (48, 64, 48))
    assert plain > 512 * 512 * 800 * 8
    assert memory.needed_memory((512, 512, 800), 1, 2, (512, 512, 800), 100, (48, 64, 48)) > plain
    assert memory.needed_memory((512, 512, 900), 1, 2, (512, 512, 900), 3, (48, 64, 48)) > plain


def test_what_lies_outside_the_training_range_is_warned_of(tmp_path):
    assert read(write(tmp_path / "a.nii"), training_range=RANGE)[1][WARNINGS] == []
    spaced = read(write(tmp_path / "b.nii", spacing=3.0), training_range=RANGE)[1][WARNINGS]
    assert [w.split(" mm")[0] for w in spaced] == ["its spacing 3 x 3 x 3", "its extent 30 x 33 x 36"]
    bright = read(write(tmp_path / "c.nii", 10 * VALUES), training_range=RANGE)[1][WARNINGS]
    assert len(bright) == 3
    assert bright[1].startswith("its 50 % intensity 9")


def test_errors_reach_the_caller_as_they_are(tmp_path):
    (tmp_path / "a.nii.gz").write_text("no image")
    with pytest.raises(VolumeError, match="a.nii.gz: cannot be read"):
        LoadVolumed("image", **OPTIONS)({"image": str(tmp_path / "a.nii.gz")})


def test_the_transform_gives_a_volume_with_monais_metadata(tmp_path):
    image = LoadVolumed("image", **OPTIONS)({"image": str(write(tmp_path / "a.nii", spacing=2.0))})["image"]
    assert image.shape == (1, *VALUES.shape)
    np.testing.assert_allclose(image.meta["original_affine"], np.diag([2, 2, 2, 1]))
    assert str(image.meta["filename_or_obj"]).endswith("a.nii")

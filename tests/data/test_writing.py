"""Masks are written whole or not at all."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import SaveImage

from scripts.data.writing import AtomicNiftiWriter

AFFINE = np.array([[0.0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(0, 3, (4, 5, 6))


def write(path: Path, values: np.ndarray, dtype: type = np.uint8) -> None:
    writer = AtomicNiftiWriter(output_dtype=dtype)
    writer.set_data_array(values, channel_dim=None)
    writer.set_metadata({"affine": AFFINE, "original_affine": AFFINE, "spatial_shape": values.shape})
    writer.write(path)


@pytest.fixture(params=[OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full-disk", "ctrl-c"])
def interruption(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    """MONAI's writer stops half-way."""

    def write_half(self: NibabelWriter, filename: Path, verbose: bool = False, **options: object) -> None:
        Path(filename).write_bytes(b"half a mask")
        raise request.param

    monkeypatch.setattr(NibabelWriter, "write", write_half)
    return request.param


def test_an_interrupted_write_leaves_nothing_behind(interruption, tmp_path):
    with pytest.raises(type(interruption)):
        write(tmp_path / "a_mask.nii.gz", VALUES)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_former_mask_as_it_was(interruption, tmp_path):
    target = tmp_path / "a_mask.nii.gz"
    target.write_bytes(b"the former mask")
    with pytest.raises(type(interruption)):
        write(target, VALUES)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"the former mask"


@pytest.mark.parametrize("name", ["a_mask.nii", "a_mask.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_mask_loads_with_its_type_values_and_grid(dtype, name, tmp_path):
    values = VALUES + 0.25 if dtype is np.float32 else VALUES
    write(tmp_path / name, values, dtype)
    loaded = nib.load(tmp_path / name)
    assert loaded.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(loaded.dataobj), values)
    np.testing.assert_allclose(loaded.affine, AFFINE, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_the_ending_decides_whether_a_mask_is_compressed(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        write(tmp_path / name, VALUES)
    assert (tmp_path / "a.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert (tmp_path / "a.nii").read_bytes()[:2] != b"\x1f\x8b"


def test_a_second_write_replaces_the_mask(tmp_path):
    for values in (VALUES, 2 - VALUES):
        write(tmp_path / "a.nii.gz", values)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "a.nii.gz").dataobj), 2 - VALUES)


def test_monai_saves_masks_through_the_writer(tmp_path):
    save = SaveImage(
        output_dir=tmp_path,
        output_postfix="mask",
        output_dtype=np.uint8,
        separate_folder=False,
        resample=False,
        writer="scripts.data.writing.AtomicNiftiWriter",
        print_log=False,
    )
    save(MetaTensor(torch.from_numpy(VALUES)[None], affine=AFFINE, meta={"filename_or_obj": "scan.nii.gz"}))
    assert [file.name for file in tmp_path.iterdir()] == ["scan_mask.nii.gz"]
    assert nib.load(tmp_path / "scan_mask.nii.gz").get_data_dtype() == np.uint8

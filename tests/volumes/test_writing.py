"""Masks are written whole or not at all, in the grid of their image."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.volumes.files import whole_file
from digar.volumes.nifti import nifti_header
from digar.volumes.writing import write_mask

AFFINE = np.array([[0.0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)


def write_image(path: Path, sform: int = 1, qform: int = 1, units: str = "mm", version: type = nib.Nifti1Image) -> Path:
    image = version(VALUES.astype(np.int16), AFFINE)
    shifted = AFFINE.copy()
    shifted[0, 3] += 4
    image.set_sform(AFFINE, sform)
    image.set_qform(shifted, qform)
    image.header.set_xyzt_units(units)
    image.header["descrip"] = b"Jane Roe, 1950"
    nib.save(image, path)
    return path


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("former", [None, b"the former mask"])
def test_an_interrupted_write_leaves_what_was_there(error, former, tmp_path, monkeypatch):
    target = tmp_path / "a_mask.nii.gz"
    if former:
        target.write_bytes(former)

    def write_half(self: nib.Nifti1Image, filename: Path) -> None:
        Path(filename).write_bytes(b"half a mask")
        raise error

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", write_half)
    with pytest.raises(type(error)), whole_file(target) as temporary:
        write_mask(temporary, VALUES, AFFINE)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([former] if former else [])


@pytest.mark.parametrize(("sform", "qform"), list(itertools.product((0, 1, 2, 4), (0, 1, 3))))
def test_a_mask_has_both_forms_and_codes_of_its_image(sform, qform, tmp_path):
    image = nib.load(write_image(tmp_path / "a.nii.gz", sform, qform))
    write_mask(tmp_path / "m.nii.gz", VALUES, image.affine, nifti_header(tmp_path / "a.nii.gz").placement)
    mask = nib.load(tmp_path / "m.nii.gz")
    for name in ("sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[name], image.header[name], err_msg=name)
    np.testing.assert_array_equal(mask.affine, image.affine)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), VALUES)
    assert mask.get_data_dtype() == np.uint8


def test_without_a_qform_a_stale_voxel_size_is_not_passed_on(tmp_path):
    image = nib.load(write_image(tmp_path / "a.nii", qform=0))
    image.header["pixdim"][1:4] = 7
    nib.save(image, tmp_path / "b.nii")
    write_mask(tmp_path / "m.nii.gz", VALUES, AFFINE, nifti_header(tmp_path / "b.nii").placement)
    mask = nib.load(tmp_path / "m.nii.gz")
    assert mask.header.get_zooms() == (2.0, 1.5, 3.0)
    np.testing.assert_array_equal(mask.affine, AFFINE)


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_units_are_kept_and_words_about_the_patient_are_not(version, tmp_path):
    path = write_image(tmp_path / "a.nii", units="meter", version=version)
    write_mask(tmp_path / "m.nii.gz", VALUES, AFFINE, nifti_header(path).placement)
    mask = nib.load(tmp_path / "m.nii.gz")
    assert mask.header.get_xyzt_units()[0] == "meter"
    assert b"Roe" not in mask.header.binaryblock


def test_the_mask_of_another_format_lies_where_the_scanner_says(tmp_path):
    write_mask(tmp_path / "m.nii.gz", VALUES, AFFINE)
    mask = nib.load(tmp_path / "m.nii.gz")
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    assert mask.header.get_xyzt_units()[0] == "mm"


def test_masks_of_several_volumes_are_written_as_one(tmp_path):
    path = write_image(tmp_path / "a.nii.gz")
    stacked = np.stack([VALUES, 2 - VALUES], axis=-1)
    write_mask(tmp_path / "m.nii.gz", stacked, AFFINE, nifti_header(path).placement)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "m.nii.gz").dataobj), stacked)

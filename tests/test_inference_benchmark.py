"""The benchmark of the inference compares masks of the same images, and counts windows as MONAI does."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.data.phantoms import make_study
from monai.data.utils import dense_patch_slices

from benchmarks import inference


@pytest.mark.parametrize("shape", [(48, 64, 48), (40, 70, 300), (410, 410, 300)])
@pytest.mark.parametrize("overlap", [0.25, 0.75])
def test_windows_are_counted_as_monai_places_them(shape, overlap):
    roi = (48, 64, 48)
    padded = [max(n, r) for n, r in zip(shape, roi, strict=True)]
    steps = [r if n == r else int(r * (1 - overlap)) for n, r in zip(padded, roi, strict=True)]
    assert inference.number_of_windows(shape, roi, overlap) == len(dense_patch_slices(padded, roi, steps))


def test_the_generated_ct_is_a_body_in_air(tmp_path):
    inference.generated_ct(tmp_path / "ct.nii.gz", (64, 64, 20), (1, 1, 2))
    volume = nib.load(tmp_path / "ct.nii.gz")
    values = np.asanyarray(volume.dataobj)
    assert values.dtype == np.int16
    assert volume.header.get_zooms() == (1, 1, 2)
    assert values[0, 0].mean() < -950
    assert -200 < values[32, 32].mean() < 300


def test_agreement_is_the_share_of_equal_voxels_and_dice(tmp_path):
    for name, values in (("a", [0, 1, 1, 0]), ("b", [0, 1, 2, 2])):
        (tmp_path / name).mkdir()
        mask = np.array(values, np.uint8).reshape(4, 1, 1)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / name / "x_mask.nii.gz")
    assert inference.agreement(tmp_path / "a", tmp_path / "b") == (0.5, 2 / 5)


@pytest.mark.slow
def test_the_masks_of_all_variants_agree(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for index in range(2):
        study = make_study(0, index)
        part = study.image[8:28, 8:28, 8:28]  # one window or a few
        nib.save(nib.Nifti1Image(part, study.affine), tmp_path / f"images/{index}.nii.gz")
    output = tmp_path / "result.json"
    inference.main([
        "--images", str(tmp_path / "images"), "--count", "2", "--large", "0", "0", "0", "--threads", "1",
        "--variants", "digar", "plain, 0 workers", "--output", str(output),
    ])  # fmt: skip
    digar, plain = json.loads(output.read_text())["small"]
    assert plain["equal_voxels"] == 1
    assert digar["equal_voxels"] > 0.995
    assert all(row["peak_memory_mib"] > 100 for row in (digar, plain))

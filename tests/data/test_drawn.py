"""Labels drawn in a viewer: refused where they do not fit, else written with the network's values."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.data.drawn import write_drawn_label

LABELS = {"anterior": 1, "posterior": 2}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.nii.gz"
    voxels = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def drawn_label(folder: Path, *values: float, affine: np.ndarray = AFFINE, shape: tuple = (8, 6, 4)) -> Path:
    """A label whose first voxels hold the values."""
    label = np.zeros(shape, np.float32)
    label.flat[: len(values)] = values
    path = folder / "drawn.nii.gz"
    nib.save(nib.Nifti1Image(label, affine), path)
    return path


@pytest.mark.parametrize(
    ("drawn", "expected", "present"),
    [
        ([], [1, 2], ["anterior", "posterior"]),
        (["anterior", "posterior"], [1, 2], ["anterior", "posterior"]),
        (["Posterior", "Anterior"], [2, 1], ["anterior", "posterior"]),
    ],
)
def test_values_become_the_networks(drawn, expected, present, image: Path, tmp_path: Path) -> None:
    target = tmp_path / "label.nii.gz"
    assert write_drawn_label(target, drawn_label(tmp_path, 1, 2), image, drawn, LABELS) == present
    written = nib.load(target)
    assert written.get_data_dtype() == np.uint8
    assert np.asarray(written.dataobj).flat[:2].tolist() == expected
    np.testing.assert_array_equal(written.affine, AFFINE)


def test_one_segment_alone_gets_its_value(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "label.nii.gz"
    assert write_drawn_label(target, drawn_label(tmp_path, 1), image, ["posterior"], LABELS) == ["posterior"]
    assert set(np.unique(nib.load(target).dataobj)) == {0, 2}


def test_the_label_takes_the_images_affine(image: Path, tmp_path: Path) -> None:
    near = AFFINE + np.array([[0, 0, 0, 0.01]] * 3 + [[0, 0, 0, 0]])
    target = tmp_path / "label.nii.gz"
    write_drawn_label(target, drawn_label(tmp_path, 1, affine=near), image, [], LABELS)
    np.testing.assert_array_equal(nib.load(target).affine, AFFINE)


@pytest.mark.parametrize(
    ("make", "drawn", "reason"),
    [
        (lambda folder: drawn_label(folder, 4, 8), [], "holds the values 4, 8"),
        (lambda folder: drawn_label(folder, 0.5), [], "holds the values 0.5"),
        (lambda folder: drawn_label(folder, -1), [], "holds the values -1"),
        (lambda folder: drawn_label(folder, float("nan")), [], "holds the values nan"),
        (lambda folder: drawn_label(folder, 1, 2), ["posterior"], r"holds the values 2, num_classes is 2 \(0 to 1\)"),
        (lambda folder: drawn_label(folder, 1), ["tumour"], "segments tumour are not among anterior, posterior"),
        (lambda folder: drawn_label(folder, 1, shape=(8, 6, 5)), [], "its image"),
        (lambda folder: drawn_label(folder, 1, affine=np.eye(4)), [], "its image"),
        (lambda folder: drawn_label(folder, 1, shape=(8, 6, 4, 2)), [], "holds 2 volumes"),
        (lambda folder: junk(folder, b"junk"), [], "cannot be read"),
        (lambda folder: junk(folder, b""), [], "cannot be read"),
        (lambda folder: junk(folder, drawn_label(folder, 1).read_bytes()[:60]), [], "cannot be read"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_and_not_written(make, drawn, reason, image: Path, tmp_path: Path) -> None:
    label, target = make(tmp_path), tmp_path / "label.nii.gz"
    with pytest.raises(ValueError, match=reason) as refusal:
        write_drawn_label(target, label, image, drawn, LABELS)
    assert str(label) not in str(refusal.value)
    assert not target.exists()


def junk(folder: Path, content: bytes) -> Path:
    path = folder / "drawn.nii.gz"
    path.write_bytes(content)
    return path

"""Masks compared with true labels: Dice as counted by hand, and errors that name both files."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.report import compare as report
from scripts.report.compare import compare, dice, load_pair, main


def volume(*labels: tuple[int, int]) -> np.ndarray:
    """64 voxels, the first ``count`` of them with ``label``, then the next pair's."""
    flat = np.zeros(64, np.uint8)
    start = 0
    for label, count in labels:
        flat[start : start + count] = label
        start += count
    return flat.reshape(4, 4, 4)


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def write_case(folder: Path, name: str, truth: np.ndarray, mask: np.ndarray) -> None:
    write(folder / f"labels/{name}.nii.gz", truth)
    write(folder / f"masks/{name}_mask.nii.gz", mask)
    write(folder / f"images/{name}.nii.gz", np.random.default_rng(0).random((4, 4, 4)).astype(np.float32))


def compare_folder(folder: Path) -> float:
    return compare(folder / "masks", folder / "labels", folder / "images", folder / "page.png")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> list:
    """Keep the rows of the page instead of drawing it."""
    drawn: list[dict] = []
    monkeypatch.setattr(report, "picture_page", lambda path, rows, title: drawn.extend(rows))
    return drawn


# Dice


def test_dice_is_twice_the_overlap_over_both_volumes():
    mask, truth = np.array([1, 1, 1, 0, 2, 0]), np.array([0, 1, 1, 1, 1, 2])
    assert dice(mask, truth, 1) == pytest.approx(2 * 2 / (3 + 4))
    assert dice(mask, truth, 2) == 0.0


def test_dice_is_1_for_equal_volumes_and_0_where_one_is_empty():
    assert dice(volume((1, 9)), volume((1, 9)), 1) == 1.0
    assert dice(volume(), volume((1, 9)), 1) == 0.0
    assert dice(volume((1, 9)), volume(), 1) == 0.0


def test_dice_is_not_a_number_where_neither_volume_holds_the_label():
    assert math.isnan(dice(volume((1, 9)), volume((1, 9)), 2))


# A pair of files


def test_a_missing_mask_is_named_with_its_label(tmp_path):
    label = write(tmp_path / "labels/a.nii.gz", volume((1, 9)))
    with pytest.raises(FileNotFoundError, match=f"there is no mask {tmp_path}/masks/a_mask.nii.gz for {label}"):
        load_pair(tmp_path / "masks/a_mask.nii.gz", label)


@pytest.mark.parametrize(
    ("values", "affine"),
    [(np.zeros((4, 4, 5), np.uint8), np.eye(4)), (volume(), np.diag([1, 1, 2, 1])), (volume(), np.diag([-1, 1, 1, 1]))],
    ids=["shape", "spacing", "orientation"],
)
def test_a_mask_in_another_grid_is_refused_with_both_names(values, affine, tmp_path):
    label = write(tmp_path / "a.nii.gz", volume())
    mask = write(tmp_path / "a_mask.nii.gz", values, affine)
    with pytest.raises(ValueError, match=f"{mask} lies in another grid than {label}"):
        load_pair(mask, label)


# Whole folders


def test_the_last_line_printed_is_the_mean_dice(tmp_path, capsys):
    write_case(tmp_path, "a", truth=volume((1, 4), (2, 4)), mask=volume((1, 4), (2, 4)))
    write_case(tmp_path, "b", truth=volume((1, 6), (2, 6)), mask=volume((1, 2), (0, 4), (2, 6)))
    folders = [f"--{name}={tmp_path / name}" for name in ("masks", "labels", "images")]
    main([*folders, "--picture", str(tmp_path / "out/page.png")])
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "label 1: Dice 0.750 over 2 cases",  # 1 and 2 * 2 / (2 + 6)
        "label 2: Dice 1.000 over 2 cases",
        f"pictures: {tmp_path}/out/page.png",
        "mean Dice 0.875",
    ]
    with Image.open(tmp_path / "out/page.png") as picture:
        assert picture.size == (810, 603)  # two rows


def test_the_mean_dice_is_returned_and_rows_show_image_truth_and_mask(tmp_path, no_page):
    truth, mask = volume((1, 4)), volume((1, 2))
    write_case(tmp_path, "a", truth, mask)
    assert compare_folder(tmp_path) == pytest.approx(2 / 3)
    (row,) = no_page
    assert row["title"] == "a: mean Dice 0.667"
    assert row["spacing"] == [1.0, 1.0, 1.0]
    for shown, expected in zip(row["masks"], (truth, mask), strict=True):
        np.testing.assert_array_equal(shown, expected)


def test_a_label_that_the_first_case_lacks_is_scored_too(tmp_path, no_page, capsys):
    write_case(tmp_path, "a", truth=volume((1, 4)), mask=volume((1, 4)))
    write_case(tmp_path, "b", truth=volume((1, 4), (2, 4)), mask=volume((1, 4)))
    assert compare_folder(tmp_path) == pytest.approx(0.5)  # label 1 is found, label 2 is missed
    assert "label 2: Dice 0.000" in capsys.readouterr().out


def test_a_first_case_without_any_label_does_not_end_the_comparison(tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume(), mask=volume())
    write_case(tmp_path, "b", truth=volume((1, 4)), mask=volume((1, 4)))
    assert compare_folder(tmp_path) == pytest.approx(1.0)


def test_files_that_macos_leaves_beside_labels_are_ignored(tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume((1, 4)), mask=volume((1, 4)))
    (tmp_path / "labels/._a.nii.gz").write_bytes(b"\0" * 200)
    assert compare_folder(tmp_path) == 1.0


def test_a_folder_without_labels_is_named(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/labels holds no label"):
        compare_folder(tmp_path)


def test_the_page_shows_the_first_cases_only(tmp_path, no_page):
    for name in "abcdef":
        write_case(tmp_path, name, truth=volume((1, 4)), mask=volume((1, 4)))
    compare_folder(tmp_path)
    assert [row["title"][0] for row in no_page] == ["a", "b", "c", "d"]
